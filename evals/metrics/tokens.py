"""From a caption to words: tokens, singular forms without model files, and what NLTK makes of them.

`words` gives what NLTK's `word_tokenize` does where CHAIR can see it: the same object words at the same indices on
20,000 captions of five models. It differs where no object is: abbreviations ("st."), "cannot", list numbers; and Punkt
keeps the period on a number that a lower-case word follows ("10:30. the").

`singular` is `singularize` of CLiPS Pattern 3.6, written from its description; its tables are in `evals/data`, with
their licences. What is below `check` is for scorers published on NLTK, whose models are downloads of their own.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from importlib.resources import files
from typing import Any

from lvlm_guard.evals.errors import DataError

_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"'”’)\]])\s+")
_APART = (  # what is set apart, in this order; the period is the sentence's own
    (re.compile(r"\.\.\.|--|[;@#$%&?!\"()\[\]{}<>`“”‘’]|[:,](?!\d)"), r" \g<0> "),
    (re.compile(r"(?<=[^\s.])\.(?=[\"'”’)\]}>\s]*$)"), " ."),
    (re.compile(r"(?<!\S)'(?!(?:t|s|m|d|ll|re|ve)\b)(?=\S)"), "' "),
    (re.compile(r"(?<=\S)'(?!\S)"), " '"),
    (re.compile(r"(?<=\S)(n't|'s|'m|'d|'ll|'re|'ve)(?!\S)"), r" \1"),
)


def words(caption: str) -> list[str]:
    """Return the lower-cased words and marks of a caption, in order. Inner hyphens, slashes, periods and apostrophes
    stay: "o'clock" yields no clock."""
    found: list[str] = []
    for sentence in _SENTENCE.split(caption.lower().strip()):
        for pattern, replacement in _APART:
            sentence = pattern.sub(replacement, sentence)
        found += sentence.split()
    return found


def spans(caption: str) -> list[tuple[int, int]]:
    """Return where each of these stands in the caption, start and end; one that can't be found has no length."""
    # a few capitals are two letters in lower case
    lowered = [(low, place) for place, letter in enumerate(caption) for low in letter.lower()]
    text, places = "".join(low for low, _ in lowered), [*(place for _, place in lowered), len(caption)]
    found, at = [], 0
    for word in words(caption):
        start = text.find(word, at)
        start, at = (at, at) if start < 0 else (start, start + len(word))
        found.append((places[start], places[at - 1] + 1 if at > start else places[start]))
    return found


REPAIRED = {word: word for word in ("bus", "minibus", "airbus", "tie", "canoe", "doggie", "collie")}
REPAIRED |= {f"{word}s": word for word in ("tie", "canoe", "doggie", "collie")}
"""Object words whose singular Pattern gets wrong: bus -> bu, ties -> ty, canoes -> cano, collies as it is."""


_TABLES: dict[str, Any] = json.loads(files("lvlm_guard.evals").joinpath("data/singular_rules.json").read_bytes())
_RULES = [(re.compile(pattern), replacement) for pattern, replacement in _TABLES["rules"]]


@lru_cache(maxsize=65536)
def singular(word: str) -> str:
    """Return what Pattern's `singularize(word)` returns, slips included."""
    lower, (first, *others) = word.lower(), word.split("-")
    if others and others[0] in _TABLES["plural_prepositions"]:
        return "-".join([singular(first), *others])
    if word.endswith("'"):
        return singular(word[:-1]) + "'s"
    # a reversed test, as published: the entry has to end with the word, so short tails ("is", "as") stay
    if any(entry.endswith(lower) for entry in (*_TABLES["uninflected"], *_TABLES["uncountable"])):
        return word
    if lower.endswith(tuple(f"{entry}s" for entry in _TABLES["ie"])):
        return word  # meant to be cut, but the published code returns it as it is
    for plural, ending in _TABLES["irregular"]:
        if lower.endswith(plural):
            return re.sub(f"(?i){plural}$", ending, word)
    changed = (rule.subn(replacement, word) for rule, replacement in _RULES)
    return next((found for found, times in changed if times), word)


def repaired(word: str) -> str:
    """Return the singular, right where Pattern is wrong about an object word."""
    return REPAIRED.get(word) or singular(word)


def check(what: str) -> None:
    """Raise `DataError` unless NLTK and its data can do all that is needed; `what` needs them, for the message."""
    try:
        lemmas("Two dogs run.")
    except ImportError as error:
        raise DataError(f"{what} needs NLTK, not installed here ({error}): pip install 'lvlm-guard[amber]'.") from None
    except (LookupError, OSError):
        how = "python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng wordnet, or name a copy in NLTK_DATA"
        raise DataError(f"{what} needs data of NLTK that are not on this machine: {how}.") from None


def tagged(text: str) -> list[tuple[str, str]]:
    """Return the words of a text with their Penn tags; raises ImportError or LookupError, see `check`."""
    import nltk

    return [(word, tag) for word, tag in nltk.pos_tag(nltk.word_tokenize(text))]


def lemma(word: str, tag: str) -> str:
    """Return a word's dictionary form as WordNet has it under a Penn tag; nouns where WordNet knows no such class."""
    from nltk.stem import WordNetLemmatizer

    return str(WordNetLemmatizer().lemmatize(word, pos={"J": "a", "V": "v", "R": "r"}.get(tag[:1], "n")))


def lemmas(caption: str) -> list[str]:
    """Return the lower-cased words of a caption in their dictionary forms, as OPERA's and PAI's CHAIR reads it."""
    return [lemma(word, tag) for word, tag in tagged(caption.lower())]
