"""Swaps of captions: what is exchanged, in what form, and what never is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvlm_guard.adapters.retrieval.bank import WordBank
from lvlm_guard.adapters.retrieval.swaps import hard_negatives, swaps_of
from lvlm_guard.embedded.tinted import COLOURS, METAS, NUMBERS, Group, listing
from lvlm_guard.errors import KnobError

GENERAL, WORLD = WordBank.general(), WordBank.world()


def texts(caption, bank=GENERAL, kind=None, **known):
    return [swap.text for swap in swaps_of(caption, bank, **known) if kind in (None, swap.kind)]


@pytest.mark.parametrize(
    ("caption", "swap"),
    [
        ("a photo of a dog on a couch", "a photo of an elephant on a couch"),
        ("An elephant drinks", "A dog drinks"),
        ("Dogs in the snow", "Cats in the snow"),
        ("three dogs run", "three sheep run"),
        ("two sheep graze", "two horses graze"),
        ("A HOT DOG ON A PLATE", "A PIZZA ON A PLATE"),
        ("a puppy sleeps", "a cat sleeps"),
        ("a pair of skis", "a pair of kites"),
        ("a hot-dog, please", "a pizza, please"),
        ("three zebras", "three giraffes"),
        ("a red tv remote", "a red tv keyboard"),
    ],
)
def test_categories_are_exchanged_within_their_kind_in_the_old_ones_form(caption, swap):
    assert swap in texts(caption, kind="category")


@pytest.mark.parametrize(
    ("caption", "swap", "kind"),
    [
        ("a red car", "an orange car", "colour"),
        ("An orange bus", "A red bus", "colour"),
        ("the car is red", "the car is blue", "colour"),
        ("a man in a red shirt", "a man in a green shirt", "colour"),
        ("two dogs", "three dogs", "number"),
        ("one dog is asleep", "two dogs are asleep", "number"),
        ("two dogs are asleep", "one dog is asleep", "number"),
        ("there are two red dogs", "there is one red dog", "number"),
        ("a wooden chair", "a metal chair", "material"),
        ("a glass bottle", "a plastic bottle", "material"),
        ("a tiny dog", "a large dog", "size"),
        ("an open book", "a closed book", "state"),
        ("a RED car", "a BLUE car", "colour"),
        ("two small red cars", "two small blue cars", "colour"),
    ],
)
def test_attributes_are_exchanged_for_another_value_of_their_type(caption, swap, kind):
    assert swap in texts(caption, kind=kind)


@pytest.mark.parametrize(
    ("caption", "never"),
    [
        ("a carrot and a scarf", "bus"),  # "car" within other words
        ("a dog's bone", "cat's"),
        ("an orange and a cup", "red and"),  # the fruit
        ("one of the best days", "two"),
        ("a bottle made of glass", "made of metal"),
        ("a photo without dogs", "cats"),
        ("no dog in sight", "cat"),
        ("a grey cat", "gray"),
        ("a small cat", "little"),
        ("a dog", "puppy"),
        ("a teddy bear", "a bear"),
        ("a wine glass", "a cup"),
        ("an open book", "a wet"),
        ("a book", "scissors"),
        ("a person", "dog"),
        ("a red tv remote", "laptop remote"),
        ("a red tv remote", "tv tv"),
    ],
)
def test_parts_of_words_synonyms_broader_words_and_negated_ones_are_left_alone(caption, never):
    assert not [text for text in texts(caption) if never in text]


def test_what_the_caption_or_a_label_also_says_is_never_put_in():
    assert "a cat and a cat" not in texts("a dog and a cat")
    assert "a bus" in texts("a car")
    assert "a bus" not in texts("a car", labels=["a red bus"])
    assert "a bus" not in texts("a car", labels=["minibus"])
    assert "a blue car and a blue car" not in texts("a red car and a blue car")
    assert "a blue car and a blue bus" in texts("a red car and a blue bus")
    assert "a blue car" not in texts("a red car", labels=["a blue car"])
    assert "a blue car" in texts("a red car", labels=["a blue bus"])
    assert "a blue car" not in texts("a red car", true_captions=["A  blue car"])
    assert "a blue shirt" not in texts("a red shirt", true_captions=["blue shoes"])


def test_a_verb_of_another_sentence_is_left_alone():
    assert "It is. One dog. Are they" in texts("It is. Two dogs. Are they", kind="number")


def test_a_caption_with_nothing_known_has_no_swaps():
    assert swaps_of("an abstract painting", GENERAL) == []
    assert hard_negatives("", GENERAL) == []


def test_swaps_say_what_was_exchanged():
    swap = next(swap for swap in swaps_of("Two Puppies", GENERAL) if swap.new == "cat")
    assert (swap.text, swap.kind, swap.old) == ("Two Cats", "category", "dog")


def test_the_world_counts_its_articles():
    found = texts("a red dog and two cats", WORLD, kind="number")
    assert "two red dogs and two cats" in found
    assert "a red dog and three cats" in found
    assert "a red dog and one cat" in found
    assert "two dogs and a cat" not in texts("a dog and a cat", GENERAL, kind="number")


def test_hard_negatives_take_kinds_in_turn_and_a_seed_fixes_them():
    caption = "two red cars and a blue bus"
    chosen = hard_negatives(caption, GENERAL, 6, seed=3)
    assert len(chosen) == 6
    assert {swap.kind for swap in chosen} == {"category", "colour", "number"}
    assert max(sum(swap.kind == kind for swap in chosen) for kind in ("category", "colour", "number")) == 2
    assert hard_negatives(caption, GENERAL, 6, seed=3) == chosen
    assert hard_negatives(caption, GENERAL, 6, seed=4) != chosen
    assert len(hard_negatives("a small dog", GENERAL, 999)) == len(swaps_of("a small dog", GENERAL))


def test_categories_of_a_data_set_keep_their_spelling_and_use_the_general_attributes():
    bank = GENERAL.with_categories({"cat": ["Sphynx", "Bengal", "Maine Coon"]})
    found = texts("a photo of a Sphynx with green fur", bank)
    assert "a photo of a Maine Coon with green fur" in found
    assert "a photo of a Sphynx with red fur" in found
    assert "a photo of two Bengals" in texts("a photo of two Sphynxes", bank)


def test_a_file_is_read_and_a_broken_one_refused(tmp_path):
    path = tmp_path / "bank.json"
    given_ = {"meta": {"cat": ["Sphynx", "Bengal"]}, "attributes": {"colour": ["red", ["grey", "gray"]]}}
    path.write_text(json.dumps(given_))
    bank = WordBank.from_file(path)
    assert texts("a gray Sphynx", bank) == ["a gray Bengal", "a red Sphynx"]
    for broken in ("{", '{"metas": {}}', '{"meta": {"cat": "Sphynx"}}', "[]"):
        path.write_text(broken)
        with pytest.raises(KnobError, match="could not be read"):
            WordBank.from_file(path)
    with pytest.raises(KnobError, match="could not be read"):
        WordBank.from_file(tmp_path / "missing.json")
    with pytest.raises(KnobError, match="listed twice"):
        WordBank({"a": ["dog"], "b": ["dog"]})
    with pytest.raises(KnobError, match="is empty"):
        WordBank({})


NAMES = [name for names in METAS.values() for name in names]
GROUPS = st.lists(
    st.builds(Group, st.sampled_from(NAMES), st.integers(1, len(NUMBERS) - 1), st.sampled_from([None, *COLOURS])),
    min_size=1, max_size=3, unique_by=lambda group: group.name,
)  # fmt: skip


@given(groups=GROUPS, seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_every_swap_of_a_world_caption_is_a_world_caption_that_is_not_true(groups, seed):
    caption = f"a photo of {listing([group.phrase() for group in groups])}"
    swaps = hard_negatives(caption, WORLD, 12, seed=seed)
    assert len(swaps) >= min(12, 4)
    assert len({swap.text for swap in swaps}) == len(swaps)
    for swap in swaps:
        assert swap.text != caption
        assert swap.new not in [group.name for group in groups]
        if swap.new != "one":  # the world itself writes "a dog" for one
            assert any(swap.text == f"a photo of {listing(phrases)}" for phrases in _one_changed(groups)), swap


def _one_changed(groups):
    for i, group in enumerate(groups):
        for changed in _neighbours(group):
            yield [(Group(*changed) if i == k else other).phrase() for k, other in enumerate(groups)]


def _neighbours(group):
    yield from ((name, group.count, group.colour) for name in NAMES if name != group.name)
    yield from ((group.name, count, group.colour) for count in range(1, len(NUMBERS)) if count != group.count)
    yield from ((group.name, group.count, colour) for colour in COLOURS if colour != group.colour)


@given(st.text(alphabet="adogcrei 's,-AO\n", max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_text_is_survived_and_swaps_never_equal_it(caption):
    for swap in swaps_of(caption, GENERAL):
        assert " ".join(swap.text.casefold().split()) != " ".join(caption.casefold().split())
