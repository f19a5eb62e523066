"""`lvlm-guard calibrate`, and what is answered and measured with its file."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lvlm_guard.embedded import world

Run = Callable[..., object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    place.mkdir()
    for number, scene in enumerate(world.scenes("val", 8).image[:8]):
        Image.fromarray(scene).save(place / f"{number}.png")
    return place


def test_a_file_is_gathered_and_guards_an_answer(run: Run, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "revis.safetensors"
    command = ("calibrate", "revis", "--images", folder, "--out", out, "--device", "cpu", "--max-new-tokens", 8)
    made = run(*command, "--json")
    assert made.code == 0, made.err
    assert made.object["pictures"] == "8"
    assert made.object["model"] == "LlavaForConditionalGeneration"
    assert "8 pictures; 100 are usual" in made.err
    assert run(*command).out.startswith("layer ")
    ask = ("generate", "--method", "revis", "--prompt", "is there a dog in the image ?", "--device", "cpu", "--json")
    assert "lvlm-guard calibrate revis" in run(*ask).err
    told = run(*ask, "--knob", f"statistics={out}")
    assert told.code == 0, told.err
    assert made.object["digest"] in told.out


def test_a_folder_without_pictures_and_a_method_without_statistics_are_refused(run: Run, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "x.safetensors")
    assert "at least 8" in run("calibrate", "revis", "--images", tmp_path, *out).err
    refused = run("calibrate", "agla", "--images", tmp_path, *out)
    assert refused.code == 2
    assert "needs no statistics" in refused.err
