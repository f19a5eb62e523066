"""The world's questions, against what can be seen in the scenes themselves."""

from collections import Counter

import numpy as np
import pytest

from lvlm_guard.embedded import world
from lvlm_guard.embedded.questions import MODES as KINDS
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks import tasks_of
from lvlm_guard.evals.tasks.world import NOUNS, world_chair, world_pope


@pytest.mark.slow
def test_every_picture_has_eighteen_questions_whose_labels_hold_in_the_scene():
    pope = world_pope(12)
    assert len(pope.questions) == 12 * 18
    assert [q.question_id for q in pope.questions] == list(range(1, 217))
    for question in pope.questions:
        objects, props = pope.scenes.visible(question.picture)
        names = [NOUNS[o] for o in objects]
        assert question.label == ("yes" if question.name in names else "no")
        assert question.text == world.question(question.name)
        suggested = {NOUNS[o] for o in world.assumed(objects, props)}
        assert question.assumed == (question.name in suggested)
    per_kind = Counter((q.picture, q.kind, q.label) for q in pope.questions)
    assert set(per_kind.values()) == {3}
    assert {kind for _, kind, _ in per_kind} == set(KINDS)


@pytest.mark.slow
def test_fewer_pictures_are_the_first_of_more():
    few, many = world_pope(3).questions, world_pope(5).questions
    assert many[: len(few)] == few


def test_adversarial_objects_are_the_likeliest_companions():
    pope = world_pope(6)
    pairs, _ = world.training_cooccurrence()
    for picture in {q.picture for q in pope.questions}:
        objects, _ = pope.scenes.visible(picture)
        together = pairs[objects].sum(0)
        asked = [
            NOUNS.index(q.name)
            for q in pope.questions
            if (q.picture, q.kind, q.label) == (picture, "adversarial", "no")
        ]
        others = [o for o in range(len(NOUNS)) if o not in objects and o not in asked]
        assert together[asked].min() >= together[others].max()


def test_captions_know_what_is_in_view():
    captions = world_chair(10)
    assert list(captions.objects) == list(range(10))
    for index, names in captions.objects.items():
        owners = np.unique(captions.scenes.owner[index])
        shown = {
            NOUNS[captions.scenes.items[index][k][1]]
            for k in owners
            if k >= 0 and captions.scenes.items[index][k][0] == 0
        }
        assert names <= shown  # in view means that at least a part is seen


def test_splits_differ_and_a_wrong_one_is_refused():
    assert not np.array_equal(world_chair(3, "val").scenes.image, world_chair(3, "test").scenes.image)
    with pytest.raises(DataError, match="'test' to report, or 'val'"):
        world_pope(3, "train")
    with pytest.raises(DataError, match="1 to 600 scenes"):
        world_chair(601)
    with pytest.raises(DataError, match="a picture or more"):
        world_pope(0)
    with pytest.raises(DataError, match=r"has \d+ scenes with three objects"):
        world_pope(401, "val")


@pytest.mark.slow
def test_the_drawings_stand_on_photographs_too_with_the_same_kinds_of_questions():
    asked, captioned = tasks_of(Settings(tasks=("world_pope_real", "world_chair_real"), limit=4))
    assert (asked.name, captioned.name) == ("world_pope_real", "world_chair_real")
    assert {row for item in asked.items for row in item.rows} == {f"pope_{kind}" for kind in KINDS}
    drawn = world_pope(4, "test", real=True)
    assert {item.question or item.prompt for item in asked.items} == {q.text for q in drawn.questions}
    assert not np.array_equal(drawn.scenes.image[0], world_pope(4).scenes.image[0])


@pytest.mark.slow
def test_what_is_calibrated_on_is_of_no_test_scene():
    (task,) = tasks_of(Settings(tasks=("world_pope",)))
    assert len({item.picture for item in task.calibration}) == 80
    shown = {item.images[0].tobytes() for item in task.items}
    assert not shown & {item.images[0].tobytes() for item in task.calibration}
    assert not {item.key for item in task.items} & {item.key for item in task.calibration}
    (chosen,) = tasks_of(Settings(tasks=("world_pope",), split="val", limit=2))
    assert chosen.calibration == []
