"""Whether a question wants yes or no, and what a "yes" would claim."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from lvlm_guard.matching.vocabulary import Vocabulary

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
    """Return whether a text with a `yes_no_claim` asks for nothing beside it, so that "yes" or "no" answers all of it.

    "Describe the image. Is it nice?" does ask for more, "Is it nice? Answer with yes or no." does not.
    """
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
    """What an answer may claim.

    Args:
        yes: what "yes" would claim; None where the question wants no yes or no.
        objects: whether it may name objects too, or alone.
    """

    yes: str | None
    objects: bool


@lru_cache(maxsize=1024)
def wanted(question: str, claim: str | None = None) -> Wanted:
    """Return what the answer to a question may claim; `claim` is what "yes" would, where the caller says so."""
    yes = claim or yes_no_claim(question)
    return Wanted(yes, yes is None or not (claim or wants_nothing_else(question)))
