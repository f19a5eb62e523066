"""Matchers that stand on a CLIP: `clip` as it is, `dual-prompt` tuned for retrieval, `ranker` tuned to order and count.

Each is one file and a subclass of `lvlm_guard.matching.Matcher`, so that AGLA cuts its view by it, `vote` asks it, and
`lvlm_guard.verify` judges by it. A name alone stands for the adapter that a model's config names, and for the embedded
model for the adapters of this package; else a folder is given: `methods.AGLA(matcher="my-adapter")`.

Here is what they share: where the adapter of a name lies, what a question claims, and one caller at a time.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

import torch

from lvlm_guard.adapters.loading import ADAPTERS
from lvlm_guard.errors import TextError, WeightsError
from lvlm_guard.matching.match import Matcher
from lvlm_guard.matching.vocabulary import Vocabulary
from lvlm_guard.verify.naming import mentions

MATCH_BYTES = 64 << 20
"""Of remembered matches."""

EDGE = 1e-6
"""Probabilities stay this far from 0 and 1."""


class AdapterMatcher(Matcher):
    """A matcher whose model one thread at a time may use.

    Args:
        version: name and a digest of what was trained.
    """

    def __init__(self, version: str) -> None:
        self._version = version
        self._lock = RLock()  # hooks and prompts are states of the model

    @property
    def version(self) -> str:
        """See `Matcher`."""
        return self._version

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the model is."""

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Shut out other threads, and what the caller set for his own model."""
        with (
            self._lock,
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(self.device.type, enabled=False),
        ):
            yield


def required(text: str) -> str:
    """Return a text to match with; raises `TextError` where it is empty."""
    if not text.strip():
        raise TextError("The text to match the picture with is empty. Ask a question, or give a caption.")
    return text


def place_for(name: str, model: Any, otherwise: str | None = None) -> str:
    """Return the folder or hub id that a matcher's name stands for.

    A model's config may say it, `lvlm_guard: {"dual-prompt": "owner/adapter"}`, also as a folder beside the model; the
    embedded model has those of this package.

    Args:
        name: of the matcher.
        model: that it will guard; None where it is not known.
        otherwise: what it stands for with any other model; None for nothing.

    Raises:
        WeightsError: nothing says which adapter is meant.
    """
    config = getattr(getattr(model, "config", None), "lvlm_guard", None) or {}
    told = config.get(name)
    if told is not None:
        beside = Path(getattr(model, "name_or_path", "") or ".") / str(told)
        return str(beside) if beside.is_dir() else str(told)
    if str(config.get("matcher", "")).startswith("."):  # the embedded model, or a copy of it
        return str(ADAPTERS / name)
    if otherwise is not None:
        return otherwise
    raise WeightsError(
        f"Which {name} adapter is meant? Train one, `lvlm-guard train {name} --data ... --out DIR`, and give its "
        f"folder in the place of the name: matcher=DIR. The embedded model has one of its own, `embedded-{name}`."
    )


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
