"""Which objects a text names."""

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from lvlm_guard.adapters.retrieval.bank import WordBank
from lvlm_guard.adapters.retrieval.claims import parse
from lvlm_guard.matching import Vocabulary
from lvlm_guard.matching.claims import finder_of
from lvlm_guard.verify import mentions

COCO = Vocabulary.of(None)


def named(text, vocabulary=COCO):
    return [(one.object, one.text) for one in mentions(text, vocabulary)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog and two cats sit.", [("dog", "dog"), ("cat", "cats")]),
        ("A Hot Dog beside a dog.", [("hot dog", "Hot Dog"), ("dog", "dog")]),
        ("a puppy", [("dog", "puppy")]),
        ("The carrots are in a car.", [("carrot", "carrots"), ("car", "car")]),
        ("hot, dog", [("dog", "dog")]),
        ("a dining-table", [("dining table", "dining-table")]),
        ("nothing of the kind", []),
        ("", []),
    ],
)
def test_objects_are_found_as_whole_words_the_longest_name_first(text, expected):
    assert named(text) == expected


@pytest.mark.parametrize("join", [" ", "  ", "-", "\u2010", "\u2011", "\u00a0", "\t"])
def test_a_finished_text_and_a_vote_join_the_words_of_a_name_alike(join):
    pieces = tiny.tokenizer(tiny.SPECIALS)
    before = pieces.encode(f"a hot{join}do", add_special_tokens=False)
    (last,) = pieces.encode("g", add_special_tokens=False)
    assert finder_of(pieces, COCO).reachable(before, [last]) == {last: {"hot dog"}}
    assert named(f"a hot{join}dog") == [("hot dog", f"hot{join}dog")]
    (phrase,) = parse(f"a hot{join}dog", WordBank.general()).phrases
    assert phrase.noun.text == f"hot{join}dog"


def test_a_word_that_names_two_objects_is_a_mention_of_each():
    both = Vocabulary.of(("bat animal, bat", "baseball bat, bat"))
    assert named("a bat", both) == [("baseball bat", "bat"), ("bat animal", "bat")]


@given(st.text(max_size=80))
def test_mentions_of_any_text_lie_in_it_in_order_and_name_known_objects(text):
    found = mentions(text, COCO)
    assert all(text[one.start : one.end] == one.text and one.object in COCO.names for one in found)
    starts = [one.start for one in found]
    assert starts == sorted(starts)


@given(st.lists(st.sampled_from(COCO.names), min_size=1, max_size=6))
def test_every_object_of_a_list_with_commas_is_found(names):
    assert [one.object for one in mentions("I see " + ", ".join(names) + ".", COCO)] == names
