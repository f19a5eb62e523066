from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lvlm_guard import embedded
from lvlm_guard.embedded.world import scenes
from lvlm_guard.matching import BlipITM

QUESTION = "is there a dog in the image ?"
Run = Callable[..., Any]


def test_mask_draws_what_the_matcher_says(run: Run, tmp_path: Path) -> None:
    made = run("mask", "--image", "world:3", "--text", QUESTION, "--out", tmp_path / "deep" / "m.png", "--json")
    assert made.code == 0
    (row,) = made.object["rows"]
    picture = Image.fromarray(scenes("test", 4).image[3])
    (match,) = BlipITM.from_pretrained(embedded.MATCHER)([picture], [QUESTION])
    assert row["score"] == pytest.approx(match.score, abs=1e-6)
    assert row["kept"] == pytest.approx(float(match.keep.float().mean()))
    sheet = np.asarray(Image.open(row["out"]))
    assert sheet.shape == (384 + 28 + 24, 3 * 384 + 4 * 12, 3)
    # the local view, right of the two others, is black where the mask is, and only there
    view = sheet[40:424, 804:1188].astype(int).sum(-1)
    keep = np.asarray(Image.fromarray(match.keep.numpy()).resize((384, 384), Image.Resampling.NEAREST))
    black = view < 30
    assert (black[~keep]).mean() > 0.8
    assert (black[keep]).mean() < 0.1


def test_mask_names_the_file_it_wrote(run: Run, tmp_path: Path) -> None:
    made = run("mask", "--text", QUESTION, "--out", tmp_path / "m.png")
    assert made.code == 0
    assert str(tmp_path / "m.png") in made.out.replace("\n", "")
    assert (tmp_path / "m.png").is_file()


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "camera"])
def test_real_photographs_get_a_map_and_the_truth_about_it(run: Run, name: str, tmp_path: Path) -> None:
    from skimage import data

    photo = tmp_path / "photo.png"
    Image.fromarray(getattr(data, name)()).save(photo)
    made = run("mask", "--image", photo, "--text", QUESTION, "--out", tmp_path / "m.png", "--json")
    assert made.code == 0
    assert any("knows only its own world" in note for note in made.object["rows"][0]["notes"])
    width, height = Image.open(photo).size
    assert Image.open(tmp_path / "m.png").size[0] == 3 * round(width * 384 / height) + 48


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--text", ""], 1, "empty"),
        ([], 2, "--text"),
        (["--text", QUESTION, "--image", "no.jpg"], 1, "No picture"),
        (["--text", QUESTION, "--matcher", "clop"], 2, "No matcher is called"),
        (["--text", QUESTION, "--matcher", "Salesforce/blip-itm-large-coco"], 1, "hf download"),
        (["--text", QUESTION, "--model", "some/llava"], 2, "--image"),
        (["--text", QUESTION, "--model", "some/llava", "--image", "world:0"], 1, "hf download"),
    ],
)
def test_what_is_wrong_is_said_with_its_exit_code(
    run: Run, arguments: list[str], code: int, message: str, tmp_path: Path
) -> None:
    made = run("mask", *arguments, "--out", tmp_path / "m.png")
    assert made.code == code
    assert message in " ".join(made.err.replace("│", " ").split())
    assert not (tmp_path / "m.png").exists()
