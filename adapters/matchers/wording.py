"""From what is asked of a picture to what a CLIP reads: a caption, or the name of an object."""

from __future__ import annotations

import re

from lvlm_guard.matching.vocabulary import Vocabulary
from lvlm_guard.verify.naming import mentions

_THERE = re.compile(
    r"\s*(?:is|are) there (?P<what>(?:an?|any|some|the) (?P<name>.+?))"
    r"(?:\s+(?:in|on|within) (?:the|this|that) (?:image|picture|photo|photograph|scene))?\s*[?.!]*\s*",
    re.IGNORECASE,
)
_SHOWN = re.compile(r"\s*a (?:photo|picture) of (?:an?|any|some|the) (?P<name>.+?)\s*[?.!]*\s*", re.IGNORECASE)


def caption_of(text: str) -> str:
    """Return a text as CLIP reads it: "is there a dog in the image?" becomes "a photo of a dog", others stay."""
    found = _THERE.fullmatch(text)
    return f"a photo of {found['what']}" if found else text


def object_of(text: str) -> str | None:
    """Return the object whose presence a text asks for or states, and nothing else; None where it says more or less."""
    found = _THERE.fullmatch(text) or _SHOWN.fullmatch(text)
    return found["name"].lower() if found else None


def objects_in(text: str, vocabulary: Vocabulary) -> list[str]:
    """Return the objects that a text is about, each once: what it asks for, else what it names of a vocabulary."""
    asked = object_of(text)
    return [asked] if asked else list(dict.fromkeys(mention.object for mention in mentions(text, vocabulary)))
