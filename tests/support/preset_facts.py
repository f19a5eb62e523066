"""A few pictures of noise, and what is said of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from in_memory import InMemory
from PIL import Image

from lvlm_guard.adapters.data.dataset import FactsData
from lvlm_guard.adapters.data.facts import CaptionRow, Facts

THINGS = ("dog", "cat", "car", "bus")
COLOURS = ("red", "blue", "green")


def some_facts():
    rng = np.random.default_rng(0)
    pictures, facts = {}, []
    for k in range(12):
        thing, colour, key = THINGS[k % 4], COLOURS[k % 3], f"{k}.png"
        pictures[key] = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
        said = CaptionRow(key, f"a {colour} {thing}", category=thing, negatives=(f"a {colour} horse",))
        split = "val" if k >= 8 else "train"
        objects = {name: float(name == thing) for name in THINGS}
        facts.append(Facts(key, captions=(replace(said, split=split),), objects=objects, split=split))
    return FactsData(tuple(facts), InMemory(pictures), "twelve pictures", exhaustive=THINGS)
