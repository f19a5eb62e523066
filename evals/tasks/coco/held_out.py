"""Which pictures a validation split may use: none that a published test uses, and none of the default tests here.

A setting that was chosen on a test's pictures makes that test's number worthless, so the rule goes by the
picture, for all tasks at once: `--split val` of one task never touches the test of another.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.resources import files

from lvlm_guard.evals.metrics.chair import image_id

FIRST_OF_VAL = "8"
"""Digests beginning with this digit or a later one are the validation half: half of all pictures."""


def of_published_test(name: str) -> bool:
    """Whether POPE (COCO, A-OKVQA, GQA) or AGLA's captions are tested on a picture of this file name.

    GQA's pictures carry other numbers than COCO's, so a picture that is in both is known by one name only.
    """
    number, tests = image_id(name), _tests()
    if "COCO_" not in name:
        return number in tests["gqa"]
    return number in tests["coco"] or number in tests["aokvqa"] or digest(number)[:8] in tests["agla_chair"]


def in_val_half(name: str) -> bool:
    """Whether a picture is in the half of COCO that validation may use; the default tests use the other."""
    return digest(image_id(name)) >= FIRST_OF_VAL and not of_published_test(name)


def digest(number: int | str) -> str:
    """Return the digest by which pictures are halved and put in order, 64 hexadecimal digits."""
    return hashlib.sha256(str(number).encode()).hexdigest()


@cache
def _tests() -> dict[str, frozenset[int | str]]:
    text = files("lvlm_guard.evals").joinpath("data/test_pictures.json").read_text(encoding="utf-8")
    return {name: frozenset(numbers) for name, numbers in json.loads(text).items()}
