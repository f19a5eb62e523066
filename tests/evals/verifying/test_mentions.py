"""Labels, sentences and probabilities of the objects that hand-made descriptions name."""

import math

import pytest

from lvlm_guard.evals.metrics import tokens
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.studies.verify.mentions import Piece, mentions_of


def described(text: str, *pieces: tuple[str, float]) -> tuple[str, list[Piece]]:
    """A description made of (text, probability) tokens; one token where none are given."""
    if not pieces:
        return text, [(0, len(text), 0.0)]
    assert "".join(part for part, _ in pieces) == text
    made, at = [], 0
    for part, p in pieces:
        made.append((at, at + len(part), math.log(p)))
        at += len(part)
    return text, made


def named(text: str, truth: list[str], *pieces: tuple[str, float], vocabulary=None) -> list[Item]:
    task = EvalTask("chair", "chair", [Item("0", "0", "describe", (), truth=truth)], 64, vocabulary=vocabulary)
    return list(mentions_of(task, [described(text, *pieces)]).items)


def test_synonyms_and_plurals_are_labelled_by_the_ground_truth_of_their_object() -> None:
    found = named("Two puppies play. A man watches them from a sofa.", ["dog", "person"])
    assert [(m.question, m.truth, m.tags["word"]) for m in found] == [
        ("dog", "yes", "puppies"),
        ("person", "yes", "man"),
        ("couch", "no", "sofa"),
    ]
    assert [m.prompt for m in found] == ["Two puppies play.", *["A man watches them from a sofa."] * 2]


def test_an_object_counts_once_where_it_is_named_first() -> None:
    found = named("A dog. The dog has a ball. Dogs!", ["dog"])
    assert [(m.question, m.prompt) for m in found] == [("dog", "A dog."), ("sports ball", "The dog has a ball.")]


def test_two_words_that_are_one_object_are_one_mention_with_both_words() -> None:
    found = named("He eats a hot dog at a traffic light.", ["hot dog"])
    assert [(m.question, m.truth, m.tags["word"]) for m in found] == [
        ("hot dog", "yes", "hot dog"),
        ("traffic light", "no", "traffic light"),
    ]


def test_the_probability_is_that_of_the_words_tokens_together_and_of_no_other() -> None:
    pieces = [("A", 0.1), (" gir", 0.5), ("affe", 0.4), (" eats", 0.01), (" a", 0.3), (" banana", 0.25), (".", 0.9)]
    found = named("A giraffe eats a banana.", ["giraffe"], *pieces)
    assert [(m.question, m.truth) for m in found] == [("giraffe", "yes"), ("banana", "no")]
    assert [m.tags["probability"] for m in found] == pytest.approx([0.2, 0.25])


def test_a_vocabulary_of_its_own_takes_the_place_of_cocos_objects() -> None:
    found = named("the image shows a wineglass , a dog .", ["wineglass"], vocabulary=("wineglass", "tv"))
    assert [(m.question, m.truth) for m in found] == [("wineglass", "yes")]


@pytest.mark.parametrize("text", ["", "Nothing here.", "..."])
def test_a_description_without_objects_has_no_mention(text: str) -> None:
    assert named(text, ["dog"]) == []


@pytest.mark.parametrize(
    "text",
    [
        "A man's dog -- a \"hot dog\", isn't it? (Yes.) 'Tis!",
        "İstanbul has a cat... and 3.5 dogs; 10:30.",
        "  The cats' toys,\nand a wine glass.  ",
    ],
)
def test_each_token_is_where_the_text_has_it(text: str) -> None:
    found = tokens.words(text)
    places = tokens.spans(text)
    assert len(places) == len(found)
    for token, (start, end) in zip(found, places, strict=True):
        assert text[start:end].lower() == token or "İ" in text[start:end]
    assert places == sorted(places)
