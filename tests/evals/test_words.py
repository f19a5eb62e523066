"""Tokens and singular forms, against NLTK's and Pattern's recorded results."""

import json
from pathlib import Path

import pytest

from lvlm_guard.evals.metrics import tokens
from lvlm_guard.evals.metrics.objects import DOUBLE_WORDS, coco_words, synonym_lines

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "chair" / "singularize_golden.json").read_text())


@pytest.mark.parametrize("word", GOLDEN)
def test_a_singular_is_what_pattern_gives(word):
    assert tokens.singular(word) == GOLDEN[word]


def test_the_repaired_singulars_differ_in_the_listed_words_alone():
    changed = {word for word in GOLDEN if tokens.repaired(word) != GOLDEN[word]}
    assert changed <= set(tokens.REPAIRED)
    assert tokens.repaired("buses") == tokens.repaired("bus") == "bus"
    assert tokens.singular("bus") == "bu"


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A dog.", ["a", "dog", "."]),
        ("A dog. A cat.", ["a", "dog", ".", "a", "cat", "."]),
        ('He said "a dog." A cat', ["he", "said", '"', "a", "dog", ".", '"', "a", "cat"]),
        ("It isn't 10:30, is it?", ["it", "is", "n't", "10:30", ",", "is", "it", "?"]),
        ("the dog's bowl; the dogs' bowls", ["the", "dog", "'s", "bowl", ";", "the", "dogs", "'", "bowls"]),
        ("five o'clock and 3.5 tie-dye shirts", ["five", "o'clock", "and", "3.5", "tie-dye", "shirts"]),
        ("(a dog)...", ["(", "a", "dog", ")", "..."]),
        ("", []),
        ("  \n ", []),
    ],
)
def test_captions_split_as_nltk_splits_them(caption, expected):
    assert tokens.words(caption) == expected


def test_the_tables_have_the_published_sizes():
    lines = synonym_lines()
    assert len(lines) == 80
    assert sum(len(line.split(", ")) for line in lines) == 416
    assert len(coco_words("pattern").nodes) == 403
    assert len(DOUBLE_WORDS) == 55
