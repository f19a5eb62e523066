"""The world of colours and counts: drawn alike everywhere, and labelled as what it shows."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from lvlm_guard.adapters.data import open_facts
from lvlm_guard.adapters.data.read import world_facts
from lvlm_guard.embedded.captioned import SPLITS, Pictures, plan, scene
from lvlm_guard.embedded.catalog import CLASSES
from lvlm_guard.embedded.tinted import COLOURS, META_OF, METAS, Group, _places, drawing, listing
from lvlm_guard.errors import UnknownNameError

NUMBER = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
# SHA-256 of the first 30 pictures that the shipped tiny CLIP was trained on.
PRETRAINED_ON = "1c5bf86753cb79dc1de273198c6ad750a78c9f967082f21702a4c01aa7f61ae4"
HASH = (
    "import hashlib; from lvlm_guard.embedded.captioned import scene; h = hashlib.sha256();"
    "[h.update(scene('captions', 'pretrain', i).image.tobytes()) for i in range(30)]; print(h.hexdigest())"
)


def read(caption: str) -> set[tuple[int, str | None, str]]:
    """Read a caption back: (number, colour, noun in the singular) of each thing named."""
    singular = {Group(name, 2).phrase().removeprefix("two "): name for name in CLASSES}
    found = set()
    for phrase in re.split(r", | and ", caption):
        number, *words = phrase.split()
        colour = words.pop(0) if words[0] in COLOURS else None
        (noun,) = words
        found.add((NUMBER[number], colour, noun if NUMBER[number] == 1 else singular[noun]))
    return found


def test_the_pictures_of_pretraining_are_drawn_alike_in_another_process() -> None:
    done = subprocess.run([sys.executable, "-c", HASH], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == PRETRAINED_ON


def test_no_picture_is_in_two_splits_or_kinds() -> None:
    seen = {
        hashlib.sha256(scene(kind, split, i).image.tobytes()).hexdigest()
        for kind in ("captions", "count", "size", "brightness")
        for split in SPLITS
        for i in range(20)
    }
    assert len(seen) == 4 * len(SPLITS) * 20


@pytest.mark.parametrize("kind", ["captions", "count", "size"])
def test_a_plan_says_what_the_scene_shows(kind: str) -> None:
    for i in range(40):
        assert plan(kind, "val", i).groups == scene(kind, "val", i).groups


def test_counts_are_what_can_be_counted_in_the_picture() -> None:
    """A group in one colour, of compact drawings, is counted as connected pieces of what it owns."""
    from scipy.ndimage import label

    compact = {"bus", "apple", "orange", "ball", "tv", "phone", "book", "couch", "suitcase", "vase", "bottle"}
    checked = 0
    for i in range(300):
        drawn = scene("captions", "test", i)
        for g, group in enumerate(drawn.groups):
            if group.name in compact:
                pieces, n = label(drawn.owner == g, np.ones((3, 3)))
                large = sum((pieces == k).sum() > 12 for k in range(1, n + 1))
                assert large <= group.count  # two that touch are one piece
                checked += large == group.count
    assert checked > 80


def test_drawings_lie_inside_the_picture_and_never_on_each_other() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        sides = sorted(rng.choice([16, 24, 32, 40], int(rng.integers(1, 10))).tolist(), reverse=True)
        taken = np.zeros((96, 96), int)
        for (y, x, side), wanted in zip(_places(rng, sides), sides, strict=True):
            assert 16 <= side <= wanted
            assert min(y, x) >= 0
            assert max(y, x) + side <= 96
            taken[y : y + side, x : x + side] += 1
        assert taken.max() == 1


@pytest.mark.parametrize("colour", COLOURS)
def test_a_tint_is_nearest_to_its_own_colour_on_the_palette(colour: str) -> None:
    names = list(COLOURS)
    palette = np.array([COLOURS[name] for name in names], float)
    palette /= np.linalg.norm(palette, axis=1, keepdims=True)
    for index in range(len(CLASSES)):
        rgba = drawing(0, index, 40, colour)
        mean = rgba[rgba[..., 3] > 0.9][:, :3].mean(0)
        if colour == "black":
            assert mean.max() < 70
        else:
            chroma = [name for name in names if name != "black"]
            near = palette[[names.index(name) for name in chroma]] @ (mean / np.linalg.norm(mean))
            assert chroma[int(near.argmax())] == colour


def test_captions_say_what_the_scene_shows_and_negatives_do_not() -> None:
    data = world_facts("captions", "test", 300).captions
    for i, row in enumerate(data.rows):
        groups = scene("captions", "test", i).groups
        shown = {(group.count, group.colour, group.name) for group in groups}
        assert read(row.caption) == shown
        first = next(iter(groups)) if len(groups) == 1 else None
        if first:
            assert row.category == first.name
        assert row.meta == META_OF[str(row.category)]
        assert len(row.negatives) == len(row.kinds) == 4
        for kind, negative in zip(row.kinds, row.negatives, strict=True):
            said = read(negative)
            new, gone = said - shown, shown - said
            assert new
            if kind == "category":
                (was,), (now,) = gone, new
                assert now[:2] == was[:2]
                assert now[2] not in {name for _, _, name in shown}
                assert META_OF[now[2]] == META_OF[was[2]]
            elif kind in ("colour", "number"):
                (was,), (now,) = gone, new
                assert now[2] == was[2]
                assert (now[0] == was[0], now[1] == was[1]) == ((True, False) if kind == "colour" else (False, True))
            else:
                assert sorted(str(c) for _, c, _ in said) == sorted(str(c) for _, c, _ in shown)


def test_every_kind_of_swap_is_common() -> None:
    kinds = Counter(kind for row in world_facts("captions", "val", 400).captions.rows for kind in row.kinds)
    assert set(kinds) == {"category", "colour", "number", "exchange"}
    assert min(kinds.values()) > 80


def test_every_object_is_of_one_meta_category_with_others_to_be_exchanged_for() -> None:
    assert sorted(META_OF) == sorted(CLASSES)
    assert sum(map(len, METAS.values())) == len(CLASSES)
    assert min(map(len, METAS.values())) >= 4


def test_sets_ordered_by_count_go_from_none_to_six_and_are_exhaustive() -> None:
    data = world_facts("count", "train", 600).ranks
    assert set(data.exhaustive) == set(CLASSES)
    assert {value for name in data.objects for value in data.values(name)[1]} == set(range(7))
    for image, value in zip(*data.values("dog"), strict=True):
        groups = {group.name: group.count for group in scene("count", "train", int(image.split("/")[2])).groups}
        assert groups.get("dog", 0) == value


def test_sets_ordered_by_size_and_brightness_can_be_measured_in_the_pictures() -> None:
    sizes = world_facts("size", "val", 60).ranks
    for row in sizes.rows:
        owner = scene("size", "val", int(row.image.split("/")[2])).owner
        ys, xs = np.nonzero(owner == 0)
        extent = max(np.ptp(ys), np.ptp(xs)) + 1
        assert row.value is not None
        assert abs(extent - row.value) <= 4
    light = world_facts("brightness", "val", 60).ranks
    for row in light.rows:
        grey = np.asarray(light.load(row.image).convert("L"), float).mean() / 25.5  # type: ignore[union-attr]
        assert row.value == pytest.approx(grey, abs=0.05)
    spread = [row.value for row in light.rows if row.value is not None]
    assert max(spread) - min(spread) > 4


def test_pictures_load_by_key_and_other_keys_are_refused() -> None:
    picture = Pictures().load("count/train/17")
    assert isinstance(picture, Image.Image)
    assert picture.size == (96, 96)
    for key in ("count/train", "count/training/1", "numbers/train/1", "count/train/x"):
        with pytest.raises(UnknownNameError, match=r"KIND/SPLIT/NUMBER|Did you mean|Known"):
            Pictures().load(key)


@pytest.mark.slow
def test_the_world_opens_by_name_with_its_splits() -> None:
    data = open_facts("world").captions
    assert {row.split for row in data.rows} == {"train", "val", "test"}
    train, held = data.parted()
    assert (len(train.rows), len(held.rows)) == (4000, 500)
    assert data.objects(data.images[0])[0] == set(open_facts("world").facts[0].objects)
    assert open_facts("world:size").ranks.instruction("dog") == "Rank the size of the dog."
    with pytest.raises(UnknownNameError, match="no kind of facts 'weight'"):
        open_facts("world:weight")


def test_a_thousand_pictures_are_drawn_in_three_seconds_of_this_processor() -> None:
    Pictures().load("captions/train/0")
    start = time.process_time()
    for i in range(1000):
        scene("captions", "train", i)
    assert time.process_time() - start < 1000 / 300


def test_phrases_agree_in_number_and_article() -> None:
    assert Group("apple", 1).phrase() == "an apple"
    assert Group("apple", 1, "red").phrase() == "a red apple"
    assert Group("knife", 3, "blue").phrase() == "three blue knives"
    assert Group("person", 2).phrase(number=False) == "people"
    assert Group("sheep", 2, "red").phrase(colour=False) == "two sheep"
    assert listing(["a cat"]) == "a cat"
    assert listing(["a cat", "two dogs", "an apple"]) == "a cat, two dogs and an apple"


def test_photographs_lie_behind_the_scenes_of_the_split_that_is_named_so() -> None:
    first = scene("captions", "test_real", 0)
    assert np.array_equal(first.image, scene("captions", "test_real", 0).image)
    assert [row.split for row in world_facts("captions", "test_real", 3).captions.rows] == [None] * 3

    def detail(split: str) -> float:
        """Mean difference of neighbouring pixels of the ground: drawn grounds have the same noise everywhere."""
        scenes = [scene("captions", split, k) for k in range(20)]
        return float(
            np.std([np.abs(np.diff(s.image.astype(float), axis=1))[s.owner[:, 1:] < 0].mean() for s in scenes])
        )

    assert detail("test_real") > 2 * detail("test")
