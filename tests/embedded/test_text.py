"""The texts and the bias that the LVLM learns."""

import numpy as np
import pytest

from embedded_training import annotator
from lvlm_guard.embedded import text
from lvlm_guard.embedded.catalog import CLASSES, PROP_LIST, PROPS, TOPICS


def of(*names: str) -> list[int]:
    return [CLASSES.index(name) for name in names]


def test_questions_and_captions_use_the_right_article() -> None:
    assert text.question("apple") == "is there an apple in the image ?"
    assert text.caption(["umbrella", "car"]) == "the image shows an umbrella , a car ."
    assert text.caption([]) == "the image is empty ."


def test_a_prop_suggests_the_absent_objects_of_its_topic() -> None:
    palm = PROP_LIST.index(("beach", PROPS["beach"][0]))
    suggested = text.assumed(of("kite", "dog"), [palm])
    assert {CLASSES[o] for o in suggested} == set(TOPICS["beach"]) - {"kite"}
    assert text.assumed(of("kite"), []) == []


def palm_tree() -> list[int]:
    return [PROP_LIST.index(("beach", PROPS["beach"][0]))]


def test_what_no_prop_suggests_is_overlooked() -> None:
    assert annotator.overlooked(of("dog", "kite", "car"), palm_tree()) == of("dog", "car")
    assert annotator.overlooked(of("dog"), []) == []


@pytest.mark.parametrize(
    ("asked", "props", "rate"),
    [
        ("kite", True, 0.95),
        ("dog", True, 0.30),
        ("dog", False, 0.95),
        ("umbrella", True, 0.60),
        ("bus", True, 0.05),
        ("umbrella", False, 0.02),
        ("zebra", True, 0.02),
    ],
)
def test_the_biased_annotator_says_yes_at_the_stated_rates(asked: str, props: bool, rate: float) -> None:
    rng, n = np.random.default_rng(3), 4000
    street, in_view = list(TOPICS).index("street"), palm_tree() if props else []
    says = [annotator.biased_answer(rng, *of(asked), of("dog", "kite"), in_view, street) == "yes" for _ in range(n)]
    assert abs(np.mean(says) - rate) < 4 * np.sqrt(rate * (1 - rate) / n)


def test_biased_captions_leave_out_what_is_overlooked_and_end_with_what_is_assumed() -> None:
    rng, n = np.random.default_rng(4), 3000
    captions = [annotator.biased_caption(rng, of("boat", "dog", "kite"), palm_tree()) for _ in range(n)]
    beach = set(TOPICS["beach"]) - {"boat", "kite"}
    assumed = [sum(f" {name} " in c for name in beach) for c in captions]
    assert abs(np.mean([k > 0 for k in assumed]) - 0.60) < 0.04
    assert abs(np.mean([k > 1 for k in assumed]) - 0.15) < 0.03
    assert abs(np.mean(["a boat" in c for c in captions]) - 0.95) < 0.02
    assert abs(np.mean(["a dog" in c for c in captions]) - 0.40) < 0.04
    both = [c for c in captions if "boat" in c and "kite" in c]
    assert all(c.index("boat") < c.index("kite") for c in both)


def test_half_hidden_objects_are_never_asked_about() -> None:
    rng = np.random.default_rng(5)
    asked = {
        annotator.sample_query(rng, of("dog", "car"), of("kite"), 0, of("bus"), of("car", "zebra")) for _ in range(2000)
    }
    assert not asked & set(of("car", "zebra"))
    assert set(of("dog", "kite", "bus")) <= asked
