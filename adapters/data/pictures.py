"""Pictures by key, wherever they lie, and what is made of them once and needed at every step."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.adapters.errors import TrainingError
from lvlm_guard.images import load_image

OnBad = Literal["raise", "skip"]
"""What becomes of a picture that can't be read: the run ends, or goes on without it and counts it."""


class Store(Protocol):
    """Gives pictures by key; as a text it says where they are, for messages."""

    def load(self, key: str) -> Image.Image:
        """Return a picture, RGB; raises `ImageError` where it can't be had."""


@dataclass(frozen=True)
class Files:
    """Pictures as files; keys are paths from `root`, or absolute."""

    root: Path

    def load(self, key: str) -> Image.Image:
        """See `Store`."""
        return load_image(self.root / key)

    def __str__(self) -> str:
        return str(self.root)


@dataclass(frozen=True)
class Bad:
    """A picture that can't be read, by its key, with the reader's message, in place of what would have been loaded."""

    image: str
    reason: str


AT_ONCE = 64
ROOM = 4 << 30  # bytes of memory that one set of features may take; beyond it they lie in a file, in half precision


Read = TypeVar("Read")


class Features:
    """Tensors of pictures by key, a row each: in memory where they fit, else in a file that is mapped into it.

    Picklable for loaders' worker processes: it holds neither a model nor, once made, the pictures.

    Args:
        keys: of the pictures.
        load: gives a picture, or whatever is encoded, or a `Bad`.
        encode: those of some keys to a tensor, a row each, on the CPU.
        advance: told how many pictures were encoded.
        room: bytes of memory that may be taken.
    """

    def __init__(
        self,
        keys: Sequence[str],
        load: Callable[[str], Read | Bad],
        encode: Callable[[Sequence[Read]], Tensor],
        advance: Callable[[int], object] = lambda _: None,
        room: int = ROOM,
    ) -> None:
        self.bad: list[Bad] = []
        self._rows: dict[str, int] = {}
        self._held: Any = torch.empty(0)
        self._file: Path | None = None
        self._owner = os.getpid()
        for start in range(0, len(keys), AT_ONCE):
            pictures = {key: load(key) for key in keys[start : start + AT_ONCE]}
            self.bad += [picture for picture in pictures.values() if isinstance(picture, Bad)]
            read = {key: picture for key, picture in pictures.items() if not isinstance(picture, Bad)}
            if read:
                made, at = encode(list(read.values())), len(self._rows)
                if not at:
                    self._hold((len(keys), *made.shape[1:]), made.dtype, made[0].nbytes * len(keys) > room)
                self._held[at : at + len(made)] = made if self._file is None else made.half().numpy()
                self._rows |= {key: at + k for k, key in enumerate(read)}
            advance(len(pictures))

    def _hold(self, shape: tuple[int, ...], dtype: torch.dtype, outside: bool) -> None:
        if not outside:
            self._held = torch.empty(shape, dtype=dtype)
            return
        with tempfile.NamedTemporaryFile(prefix="lvlm-guard-features-", suffix=".npy", delete=False) as file:
            self._file = Path(file.name)
        self._held = np.lib.format.open_memmap(self._file, "w+", np.float16, shape)

    def __del__(self) -> None:
        file: Path | None = getattr(self, "_file", None)
        if file is not None and self._owner == os.getpid():  # a worker process only borrows it
            file.unlink(missing_ok=True)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_owner": 0} | ({"_held": None} if self._file is not None else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        if self._file is not None:
            self._held = np.load(self._file, mmap_mode="r")

    def __call__(self, keys: Sequence[str]) -> Tensor:
        """Return the rows of pictures, [n, ...] float32; raises `TrainingError` where one was not read."""
        if missing := [key for key in keys if key not in self._rows]:
            raise TrainingError(f"The picture {missing[0]!r} is not among the {len(self._rows)} that were read.")
        rows = self._held[[self._rows[key] for key in keys]]
        return rows if isinstance(rows, Tensor) else torch.from_numpy(np.asarray(rows)).float()
