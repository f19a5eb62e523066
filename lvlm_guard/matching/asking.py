"""What a text asks of somebody who only knows which objects are in a picture, and how many; whether it wants yes or no.

The first rule that fits: "is/are there a dog ...?" asks whether one is there; "are there two dogs?" whether so many
are; a text that names known objects ("is the dog brown?") needs them all, and more; anything else is not for him.

A word of a vocabulary may be narrower than its object: CHAIR's list has the pigeon under the bird. A detector of birds
can refute a pigeon and can't prove one, so such words need the object, and more, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from lvlm_guard.matching.vocabulary import Spellings, Vocabulary, plural, spelled

Kind = Literal["exists", "counts", "needs", "nothing"]

_WHERE = (
    r"(?:\s+(?:visible|present|shown|seen))?"
    r"(?:\s+(?:in|on|within) (?:the|this|that) (?:image|picture|photo|photograph|scene))?"
)
THERE = re.compile(
    rf"\s*(?:is|are) there (?P<what>(?:an?|any|some|the)\s+(?P<name>.+?)){_WHERE}\s*[?.!]*\s*|"
    rf"\s*a (?:photo|picture) of (?:an?|any|some|the)\s+(?P<shown>.+?)\s*[?.!]*\s*",
    re.IGNORECASE,
)
"""Asks whether there is `what`, a `name` with its article, or states that a `shown` one is there; and nothing else."""

_COUNT = re.compile(
    r"\s*(?:is|are) there (?:a total of |only |exactly )?(?P<rule>at least |more than )?(?P<number>\w+)\s+(?P<name>.+?)"
    rf"{_WHERE}\s*[?.!]*\s*",
    re.IGNORECASE,
)
LONGEST = 4
"""Words of a thing that an open-vocabulary detector is asked about."""

_WORDS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_NUMBERS = {word: number for number, word in enumerate(_WORDS)} | {"zero": 0}

ALIASES = {
    "aeroplane": "airplane", "pottedplant": "potted plant", "diningtable": "dining table", "tvmonitor": "tv",
    "tv monitor": "tv", "hair dryer": "hair drier",
}  # fmt: skip
"""Labels of detectors trained by Darknet's names, and what COCO calls them."""

_SAME = re.split(
    r",\s+",
    """bike, automobile, motorbike, motor bike, motor cycle, plane, air plane, people, lorry, traffic signal,
    stop light, stoplight, hydrant, doggie, doggy, knapsack, purse, suit case, ski, ball, racket, doughnut, sofa,
    settee, houseplant, table, television, laptop computer, mobile phone, phone, cellphone, smartphone, fridge,
    teddybear, hairdryer""",
)
"""Words of COCO's list that mean no less than their object."""


@dataclass(frozen=True)
class Asked:
    """What is asked.

    Args:
        kind: "exists", "counts" (of one object), "needs" (all of some objects, and more), or "nothing".
        objects: by name.
        number, at_least: how many are asked for, where it "counts", and whether more are as right.
    """

    kind: Kind
    objects: tuple[str, ...] = ()
    number: int = 1
    at_least: bool = False


@lru_cache(maxsize=4096)
def asked(text: str, known: frozenset[str], anything: bool = False) -> Asked:
    """Return what a text asks.

    Args:
        text: a claim or a question.
        known: the objects that can be told: names of COCO's vocabulary, or others by their own.
        anything: whether anything of up to four words can be told, where a text asks whether, or how many, are there.
    """
    spellings = _spellings(known)
    if found := THERE.fullmatch(text):
        name, exact = _named(found["name"] or found["shown"], spellings, anything)
        if name is not None:
            return Asked("exists" if exact else "needs", (name,))
    if (found := _COUNT.fullmatch(text)) and (number := _number(found["number"])) is not None:
        name, exact = _named(found["name"], spellings, anything)
        if name is not None:
            rule = (found["rule"] or "").strip().lower()
            count = Asked("counts", (name,), number + (rule == "more than"), bool(rule))
            return count if exact else Asked("needs", (name,))
    needed = dict.fromkeys(spellings[run.spelling][0] for run in spellings.named(text))
    return Asked("needs", tuple(needed)) if needed else Asked("nothing")


def _named(text: str, spellings: Mapping[str, tuple[str, bool]], anything: bool) -> tuple[str | None, bool]:
    """Return the object that is asked about, and whether the words mean no less; None: nobody can tell."""
    name, exact = spellings.get(spelled(text), (None, False))
    if anything and not exact and 0 < len(spelled(text).split()) <= LONGEST:
        return spelled(text), True
    return name, exact


def object_of(label: str) -> str | None:
    """Return the object that a detector's label stands for, None for those that name none ("N/A", "LABEL_3")."""
    name = spelled(ALIASES.get(spelled(label), label))
    if not name or re.fullmatch(r"n a|label \d+|background", name.replace("_", " ")):
        return None
    found = Vocabulary.of(None).spellings().get(name)
    return min(found) if found else name


@lru_cache(maxsize=16)
def _spellings(known: frozenset[str]) -> Spellings[tuple[str, bool]]:
    """Return spelling -> the object, and whether it means no less."""
    found = Spellings[tuple[str, bool]]()
    for name in sorted(known):
        found.update({spelled(word): (name, True) for word in (name, plural(name))})
    for spelling, names in Vocabulary.of(None).spellings().items():
        for name in sorted(names & known):
            exact = any(spelling in (spelled(word), spelled(plural(word))) for word in (name, *_SAME))
            found.setdefault(spelling, (name, exact))
    return found


def _number(word: str) -> int | None:
    return int(word) if word.isdigit() else _NUMBERS.get(word.lower())


YES = Vocabulary((("yes", ("yes",)),), plurals=False)
"""The one word whose first pieces stand for the claim."""

_OPENER = re.compile(
    r"(is|are|was|were|am|do|does|did|can|could|has|have|had|will|would|should|shall|may|might|must)\b(?!'| not )"
)
_REQUEST = re.compile(
    r"(can|could|will|would) (you|we|i) (please )?"
    r"(?!see|spot|find|notice|detect|identify|recogni|observe|tell if|tell whether)"
)
_SENTENCE = re.compile(r"[^.?!\n]+[.?!]?")
_ABOUT_THE_ANSWER = re.compile(
    r"(please )?(just |simply |only )?(answer|reply|respond)\b.*\b(yes|no|true|false|words?|phrase|briefly|shortly)\b"
)


def wants_nothing_else(question: str) -> bool:
    """Return whether a text asks for nothing but its `yes_no_claim`, as "Is it nice? Answer with yes or no." does."""
    sentences = [" ".join(sentence.lower().split()).strip(" .?!") for sentence in _SENTENCE.findall(question)]
    return sum(bool(sentence) and not _ABOUT_THE_ANSWER.match(sentence) for sentence in sentences) <= 1


def yes_no_claim(question: str) -> str | None:
    """Return the sentence that a "yes" would affirm, or None where the question wants no yes or no.

    It is the first sentence with a question mark, or without any the first sentence, if it begins with is, are,
    do, does, can, was, has, ... Requests ("Can you describe ...?") and choices ("Is it a cat or a dog?") want another
    answer, and so do negated questions ("Isn't it a cat?"), whose "yes" is ambiguous.
    """
    sentences = [sentence.strip() for sentence in _SENTENCE.findall(question) if sentence.strip(" .?!")]
    asked = next((sentence for sentence in sentences if sentence.endswith("?")), sentences[0] if sentences else "")
    plain = " ".join(asked.lower().split())
    if not _OPENER.match(plain) or _REQUEST.match(plain):
        return None
    if " or " in re.sub(r"\b(yes or no|or not|or more|or less)\b", "", plain):
        return None
    return asked


@dataclass(frozen=True)
class Wanted:
    """What an answer may claim: what "yes" would (None: the question wants no yes or no), and objects too or alone."""

    yes: str | None
    objects: bool


@lru_cache(maxsize=1024)
def wanted(question: str, claim: str | None = None) -> Wanted:
    """Return what the answer to a question may claim; `claim` is what "yes" would, where the caller says so."""
    yes = claim or yes_no_claim(question)
    return Wanted(yes, yes is None or not (claim or wants_nothing_else(question)))
