"""Descriptions that name an object twice, on the embedded model's words."""

from __future__ import annotations

import pytest

from embedded_training.build import llava_processor
from lvlm_guard.adapters.distill.lessons import Answer, Lesson
from lvlm_guard.adapters.distill.rows import unrepeated, without_repeats
from lvlm_guard.embedded.world import CLASSES
from lvlm_guard.matching import Vocabulary

TOKENIZER = llava_processor().tokenizer
WORLD = Vocabulary.of(tuple(CLASSES))


def ids(text: str) -> list[int]:
    found = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.unk_token_id not in found
    return list(found)


def told(text: str, *choices: tuple[int, dict[str, float]]) -> Answer:
    """A description, and at some of its steps the words that the guard could have said."""
    soft = [([ids(word)[0] for word in words], list(words.values())) for _, words in choices]
    return Answer("describe", None, None, ids(text), text, [step for step, _ in choices], [], soft)


def learnt(answer: Answer, least: float) -> list[dict[str, float]]:
    made = unrepeated(answer, TOKENIZER, WORLD, least)
    assert (made.tokens, made.open) == (answer.tokens, answer.open)
    return [
        {TOKENIZER.decode([token]): share for token, share in zip(tokens, shares, strict=True)}
        for tokens, shares in made.soft
    ]


TWICE = told(
    "a dog , a cat , a dog .",
    (1, {"dog": 0.6, "cat": 0.4}),
    (4, {"cat": 0.5, "dog": 0.3, "bus": 0.2}),
    (7, {"dog": 0.7, "bus": 0.2, "cat": 0.1}),
    (8, {".": 0.9, ",": 0.1}),
)


def test_what_was_named_before_is_left_out_where_enough_remains():
    assert learnt(TWICE, 0.15) == [
        {"dog": 0.6, "cat": 0.4},
        {"cat": 0.5, "bus": 0.2},
        {"bus": 0.2},
        {".": 0.9, ",": 0.1},
    ]


def test_a_step_stays_as_it_is_where_next_to_nothing_else_could_be_said():
    assert learnt(TWICE, 0.3)[2] == {"dog": 0.7, "bus": 0.2, "cat": 0.1}
    assert learnt(TWICE, 0.3)[1] == {"cat": 0.5, "bus": 0.2}
    only = told("a dog , a dog", (4, {"dog": 1.0}))
    assert learnt(only, 0.0) == [{"dog": 1.0}]


def test_shares_that_do_not_add_up_to_one_are_compared_with_their_sum():
    rest = told("a dog , a bus", (4, {"dog": 0.3, "bus": 0.2}))
    assert learnt(rest, 0.35) == [{"bus": 0.2}]
    assert learnt(rest, 0.45) == [{"dog": 0.3, "bus": 0.2}]


@pytest.mark.parametrize("least", [0.0, 0.5, 1.0])
def test_words_that_name_nothing_again_are_never_left_out(least: float):
    first = told("a dog and a cat", (0, {"a": 1.0}), (4, {"cat": 0.5, "bus": 0.5}))
    assert unrepeated(first, TOKENIZER, WORLD, least) == first


def test_answers_about_an_object_are_learnt_as_they_are():
    asked = Answer("is there a dog ?", "dog", 0.9, ids("yes"), "yes", [0], [], [(ids("yes no"), [0.6, 0.4])])
    line = Lesson("a.jpg", [TWICE, asked]).line()
    (made,) = without_repeats([line], TOKENIZER, WORLD, 0.15)
    lesson = Lesson.of(made)
    assert lesson.picture == "a.jpg"
    assert lesson.answers[1] == Lesson.of(line).answers[1]
    assert len(lesson.answers[0].soft[2][0]) == 1
