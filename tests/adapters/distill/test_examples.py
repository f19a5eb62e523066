"""What a training step sees."""

import numpy as np
import pytest

from lvlm_guard.adapters.distill.lessons import Answer, Lesson, Pictures
from lvlm_guard.adapters.distill.training import Examples, chosen


def question(name, text, open_=(), support=None):
    return Answer(f"{name}?", name, support, [1], text, list(open_), [], [([1], [1.0])] * len(open_))


FREE = [Answer(f"describe {k}", None, None, [1], "a dog", [], [], []) for k in range(2)]
YES = [question(f"yes{k}", "Yes.") for k in range(30)]
DOUBTED = [question(f"open{k}", "no", open_=[0]) for k in range(15)] + [
    question(f"likely{k}", "no", support=0.06) for k in range(15)
]
SURE = [question(f"sure{k}", "no", support=0.05) for k in range(60)]


def drawn(times, questions=5, answers=(*FREE, *YES, *DOUBTED, *SURE)):
    rng = np.random.default_rng(0)
    return [chosen(answers, questions, rng) for _ in range(times)]


def test_a_step_sees_one_free_answer_and_the_questions_in_the_mix_of_the_recipe():
    some = drawn(2000)
    assert all(sum(a.object is None for a in one) == 1 and len(one) == 6 for one in some)
    asked = [a.object for one in some for a in one if a.object]
    share = {kind: sum(name.startswith(kind) for name in asked) / len(asked) for kind in ("yes", "open", "likely")}
    # 40 % yes and 20 % doubted, plus each kind's part of the rest: 40 % * 30 / 120
    assert share["yes"] == pytest.approx(0.4 + 0.4 * 0.25, abs=0.02)
    assert share["open"] + share["likely"] == pytest.approx(0.2 + 0.4 * 0.25, abs=0.02)


def test_no_answer_comes_twice_in_a_step_and_all_come_where_there_are_few():
    (one,) = drawn(1, questions=50, answers=(*FREE[:1], *YES[:2], *SURE[:3]))
    assert len(one) == 6
    assert len({a.prompt for a in one}) == 6


def test_a_kind_that_a_picture_lacks_is_made_up_for_from_the_rest():
    assert all(len(one) == 3 for one in drawn(20, questions=3, answers=SURE))


@pytest.fixture
def examples():
    lines = [Lesson(f"p{k}", [*FREE, *YES, *SURE]).line() for k in range(7)]
    pictures = Pictures(tuple(f"p{k}" for k in range(7)), (), lambda name: name)

    def made(seed=0):
        return Examples(lines, pictures, 4, 21, seed)

    return made


def test_each_round_shows_every_picture_once_in_another_order(examples):
    shown = [examples()[k][0] for k in range(21)]
    rounds = [shown[:7], shown[7:14], shown[14:]]
    assert all(sorted(one) == [f"p{k}" for k in range(7)] for one in rounds)
    assert rounds[0] != rounds[1]


def test_an_example_depends_on_its_number_and_the_seed_alone(examples):
    backwards = [examples()[k] for k in reversed(range(21))][::-1]
    forwards = [examples()[k] for k in range(21)]
    assert backwards == forwards
    assert [examples(1)[k] for k in range(21)] != forwards
