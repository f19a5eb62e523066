"""The world's questions, against what can be seen in the scenes themselves."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lvlm_guard.embedded import world
from lvlm_guard.embedded.questions import MODES as KINDS
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.spec.items import Item
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks import tasks_of
from lvlm_guard.evals.tasks.world import NOUNS, scenes_of


def asked_of(task: str, **settings: Any) -> Sequence[Item]:
    (made,) = tasks_of(Settings(tasks=(task,), **settings))
    return made.items


def in_view(scenes: world.Scenes, item: Item) -> set[str]:
    return {NOUNS[shown] for shown in scenes.visible(int(item.picture))[0]}


@pytest.mark.slow
def test_every_picture_has_eighteen_questions_whose_labels_hold_in_the_scene():
    items, scenes = asked_of("world_pope", limit=12), world.scenes("test")
    assert sum(len(item.rows) for item in items) == 12 * 18
    for item in items:
        objects, props = scenes.visible(int(item.picture))
        assert item.truth == ("yes" if item.tags["object"] in in_view(scenes, item) else "no")
        assert item.prompt == world.question(item.tags["object"])
        suggested = {NOUNS[o] for o in world.assumed(objects, props)}
        assert item.tags["assumed"] == (item.tags["object"] in suggested)
        assert np.array_equal(item.images[0], scenes.image[int(item.picture)])
    per_kind = Counter((item.picture, row, item.truth) for item in items for row in item.rows)
    assert set(per_kind.values()) == {3}
    assert {row for _, row, _ in per_kind} == {f"pope_{kind}" for kind in KINDS}
    assert len({(item.picture, item.prompt) for item in items}) == len(items)


@pytest.mark.slow
def test_fewer_pictures_are_the_first_of_more():
    few, many = (asked_of("world_pope", limit=limit) for limit in (3, 5))
    assert [item.describe() for item in many[: len(few)]] == [item.describe() for item in few]


def test_adversarial_objects_are_the_likeliest_companions():
    items, scenes = asked_of("world_pope", limit=6), world.scenes("test")
    pairs, _ = world.training_cooccurrence()
    for picture in {item.picture for item in items}:
        objects, _ = scenes.visible(int(picture))
        together = pairs[objects].sum(0)
        asked = [
            NOUNS.index(item.tags["object"])
            for item in items
            if (item.picture, item.truth) == (picture, "no") and "pope_adversarial" in item.rows
        ]
        others = [o for o in range(len(NOUNS)) if o not in objects and o not in asked]
        assert together[asked].min() >= together[others].max()


def test_captions_know_what_is_in_view():
    items, scenes = asked_of("world_chair", captions=10), world.scenes("test_cap", 10)
    assert [item.key for item in items] == [str(n) for n in range(10)]
    for index, item in enumerate(items):
        kinds = [scenes.items[index][k][:2] for k in np.unique(scenes.owner[index]) if k >= 0]
        shown = {NOUNS[name] for kind, name in kinds if kind == 0}
        assert set(item.truth) == in_view(scenes, item) <= shown  # in view means that at least a part is seen
        assert item.tags["prop"] == bool(scenes.visible(index)[1])


def test_splits_differ_and_a_wrong_one_is_refused():
    val, test = (asked_of("world_chair", limit=3, split=split) for split in ("val", "test"))
    assert not any(np.array_equal(a.images[0], b.images[0]) for a, b in zip(val, test, strict=True))
    with pytest.raises(DataError, match="'test' to report, or 'val'"):
        scenes_of("train")
    with pytest.raises(DataError, match="1 to 600 scenes"):
        asked_of("world_chair", captions=601)
    with pytest.raises(DataError, match=r"has \d+ scenes with three objects"):
        asked_of("world_pope", limit=401, split="val")


@pytest.mark.slow
def test_the_drawings_stand_on_photographs_too_with_the_same_kinds_of_questions():
    asked, captioned = tasks_of(Settings(tasks=("world_pope_real", "world_chair_real"), limit=4))
    assert (asked.name, captioned.name) == ("world_pope_real", "world_chair_real")
    assert {row for item in asked.items for row in item.rows} == {f"pope_{kind}" for kind in KINDS}
    plain = asked_of("world_pope", limit=4)
    assert not np.array_equal(asked.items[0].images[0], plain[0].images[0])


@pytest.mark.slow
def test_what_is_calibrated_on_is_of_no_test_scene():
    (task,) = tasks_of(Settings(tasks=("world_pope",)))
    assert len({item.picture for item in task.calibration}) == 80
    shown = {item.images[0].tobytes() for item in task.items}
    assert not shown & {item.images[0].tobytes() for item in task.calibration}
    assert not {item.key for item in task.items} & {item.key for item in task.calibration}
    (chosen,) = tasks_of(Settings(tasks=("world_pope",), split="val", limit=2))
    assert chosen.calibration == []
