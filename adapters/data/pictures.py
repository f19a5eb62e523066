"""Where pictures come from, and what becomes of those that can't be read.

A store gives a picture by key. Data sets keep keys, so that a million pictures cost no memory; stores are picklable,
so that a loader's worker processes can have them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from PIL import Image

from lvlm_guard.adapters.errors import DataError
from lvlm_guard.errors import ImageError
from lvlm_guard.images import load_image

OnBad = Literal["raise", "skip"]
"""What becomes of a picture that can't be read: the run ends, or goes on without it and counts it."""


class Store(Protocol):
    """Gives pictures by key."""

    def load(self, key: str) -> Image.Image:
        """Return a picture, RGB; raises `GuardError` where it can't be had."""

    def describe(self) -> str:
        """Return where the pictures are, for messages."""


@dataclass(frozen=True)
class Files:
    """Pictures as files; keys are paths from `root`, or absolute."""

    root: Path

    def load(self, key: str) -> Image.Image:
        """Return a picture; raises `ImageError`."""
        return load_image(self.root / key)

    def describe(self) -> str:
        """Return where the pictures are."""
        return str(self.root)


@dataclass(frozen=True)
class InMemory:
    """Pictures that are there already, by key."""

    pictures: Mapping[str, Image.Image]

    def load(self, key: str) -> Image.Image:
        """Return a picture; raises `ImageError`."""
        if key not in self.pictures:
            raise ImageError(f"There is no picture {key!r} among the {len(self.pictures)} given.")
        return load_image(self.pictures[key])

    def describe(self) -> str:
        """Return where the pictures are."""
        return "memory"


@dataclass(frozen=True)
class Bad:
    """A picture that can't be read, in the place of what would have been loaded.

    Args:
        image: its key.
        reason: the reader's message.
    """

    image: str
    reason: str


def load(store: Store, key: str, on_bad: OnBad) -> Image.Image | Bad:
    """Return a picture, or where `on_bad` is "skip" and it can't be read, a `Bad`.

    Raises:
        DataError: it can't be read, and `on_bad` is "raise".
    """
    try:
        return store.load(key)
    except ImageError as error:
        if on_bad == "skip":
            return Bad(key, str(error))
        raise DataError(
            f"The picture {key!r} of {store.describe()} can't be read: {error} To go on without such pictures, which "
            'are then counted, give on_bad="skip" (--on-bad skip).'
        ) from error
