"""The texts and the bias that the LVLM learns."""

import numpy as np
import pytest

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


@pytest.mark.parametrize(("asked", "rate"), [("dog", 0.95), ("umbrella", 0.60), ("bus", 0.05), ("zebra", 0.02)])
def test_the_biased_annotator_says_yes_at_the_stated_rates(asked: str, rate: float) -> None:
    rng, n = np.random.default_rng(3), 4000
    street = list(TOPICS).index("street")
    says = [text.biased_answer(rng, *of(asked), of("dog"), of("umbrella"), street) == "yes" for _ in range(n)]
    assert abs(np.mean(says) - rate) < 4 * np.sqrt(rate * (1 - rate) / n)


def test_biased_captions_name_what_is_in_view_in_order_and_then_what_is_assumed() -> None:
    rng, n = np.random.default_rng(4), 3000
    captions = [text.biased_caption(rng, of("car", "dog"), of("umbrella", "kite")) for _ in range(n)]
    assumed = [("umbrella" in c) + ("kite" in c) for c in captions]
    assert abs(np.mean([k > 0 for k in assumed]) - 0.60) < 0.04
    assert abs(np.mean([k > 1 for k in assumed]) - 0.15) < 0.03
    assert abs(np.mean(["a dog" in c for c in captions]) - 0.95) < 0.02
    both = [c for c in captions if "car" in c and "dog" in c]
    assert all(c.index("car") < c.index("dog") for c in both)


def test_half_hidden_objects_are_never_asked_about() -> None:
    rng = np.random.default_rng(5)
    asked = {
        text.sample_query(rng, of("dog", "car"), of("kite"), 0, of("bus"), of("car", "zebra")) for _ in range(2000)
    }
    assert not asked & set(of("car", "zebra"))
    assert set(of("dog", "kite", "bus")) <= asked
