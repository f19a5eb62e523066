"""Where pictures come from, and what becomes of those that can't be read.

A store gives a picture by key. Data sets keep keys, so that a million pictures cost no memory; stores are picklable,
so that a loader's worker processes can have them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from PIL import Image

from lvlm_guard.adapters.data.errors import DataError
from lvlm_guard.errors import ImageError
from lvlm_guard.images import load_image

OnBad = Literal["raise", "skip"]
"""What becomes of a picture that can't be read: the run ends, or goes on without it and counts it."""

FIRST = 5  # pictures looked for before anything is trained: a wrong folder is then found at once

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
"""Endings by which folders and shards know a picture."""


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

    def check(self, keys: Sequence[str]) -> None:
        """Refuse a root under which none of the first pictures is; raises `DataError`."""
        first = keys[:FIRST]
        if first and not any((self.root / key).is_file() for key in first):
            raise DataError(
                f"None of the first {len(first)} pictures is there, {str(self.root / first[0])!r} for one. Paths are "
                f"read from the folder of the file that names them, here {str(self.root)!r}: move the file there, or "
                "give the pictures' folder as `images` (--images)."
            )


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


Item = TypeVar("Item")


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


def sift(items: Iterable[Item | Bad]) -> tuple[list[Item], list[Bad]]:
    """Return what was loaded and what could not be; for a loader's collate function."""
    kept: list[Item] = []
    bad: list[Bad] = []
    for item in items:
        if isinstance(item, Bad):
            bad.append(item)
        else:
            kept.append(item)
    return kept, bad
