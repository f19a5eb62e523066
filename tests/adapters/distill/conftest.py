"""The embedded model, guarded, and a few of its scenes."""

from pathlib import Path

import pytest
from PIL import Image

from lvlm_guard import guard
from lvlm_guard.adapters.distill.lessons import Lessons, Pictures
from lvlm_guard.adapters.distill.teacher import Teacher, method_of
from lvlm_guard.embedded.world import CAPTION_PROMPT, CLASSES, scenes
from lvlm_guard.errors import ImageError
from lvlm_guard.pretrained import load_model

WORLD = Lessons(
    prompts=(CAPTION_PROMPT, "is there {article} {object} in the image ?"),
    objects=tuple(CLASSES),
    other=(),
    questions=8,
    pictures=4,
    held_out=2,
    max_new_tokens=40,
)


@pytest.fixture(scope="session")
def lessons():
    return WORLD


@pytest.fixture(scope="session")
def teacher():
    method = method_of(WORLD)
    return Teacher(*guard(*load_model(), method), method, WORLD, at_once=32)


@pytest.fixture(scope="session")
def world():
    drawn = scenes("val", 6).image

    def load(name):
        if name.startswith("bad"):
            raise ImageError(f"{name} can't be decoded.")
        return Image.fromarray(drawn[int(name)])

    return Pictures(("0", "1", "2", "3"), ("4", "5"), load)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of pictures, one of them damaged, one no picture, one below another folder."""
    place = tmp_path / "pictures"
    (place / "more").mkdir(parents=True)
    for number, image in enumerate(scenes("val", 6).image):
        Image.fromarray(image).save(place / ("more" if number == 5 else ".") / f"{number}.png")
    whole = (place / "2.png").read_bytes()
    (place / "2.png").write_bytes(whole[: len(whole) // 2])
    (place / "notes.txt").write_text("no picture")
    return place
