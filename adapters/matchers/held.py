"""What matchers on a trained adapter share: one caller at a time, whatever he has set for his own model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import torch

from lvlm_guard.errors import TextError
from lvlm_guard.matching.match import Matcher

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
        """Name and a digest of what was trained."""
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
