"""What is made of pictures once and needed at every step: pixels, or what a frozen tower sees in them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.adapters.data.pictures import Bad
from lvlm_guard.adapters.errors import TrainingError

AT_ONCE = 64
ROOM = 4 << 30  # bytes of memory that one set of features may take; beyond it they lie in a file, in half precision

Load = Callable[[str], Image.Image | Bad]
Encode = Callable[[Sequence[Image.Image]], Tensor]


class Features:
    """Tensors of pictures by key, a row each: in memory where they fit, else in a file that is mapped into it.

    Picklable for loaders' worker processes: it holds neither a model nor, once made, the pictures.

    Args:
        keys: of the pictures.
        load: gives a picture or a `Bad`.
        encode: pictures to a tensor, a row each, on the CPU.
        advance: told how many pictures were encoded.
        room: bytes of memory that may be taken.
    """

    def __init__(
        self,
        keys: Sequence[str],
        load: Load,
        encode: Encode,
        advance: Callable[[int], object] = lambda _: None,
        room: int = ROOM,
    ) -> None:
        self.bad: list[Bad] = []
        self._rows: dict[str, int] = {}
        self._held: Any = torch.empty(0)
        self._file: Path | None = None
        self._owner = os.getpid()
        parts: list[Tensor] = []
        for start in range(0, len(keys), AT_ONCE):
            pictures = {key: load(key) for key in keys[start : start + AT_ONCE]}
            self.bad += [picture for picture in pictures.values() if isinstance(picture, Bad)]
            read = {key: picture for key, picture in pictures.items() if not isinstance(picture, Bad)}
            if read:
                made = encode(list(read.values()))
                if self._file is None and made[0].nbytes * len(keys) > room:
                    self._map(len(keys), made.shape[1:])
                at = len(self._rows)
                self._rows |= {key: at + k for k, key in enumerate(read)}
                if self._file is not None:
                    self._held[at : at + len(made)] = made.half().numpy()
                else:
                    parts.append(made)
            advance(len(pictures))
        if parts:
            self._held = torch.cat(parts)

    def _map(self, rows: int, shape: Sequence[int]) -> None:
        with tempfile.NamedTemporaryFile(prefix="lvlm-guard-features-", suffix=".npy", delete=False) as file:
            self._file = Path(file.name)
        self._held = np.lib.format.open_memmap(self._file, "w+", np.float16, (rows, *shape))

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

    @classmethod
    def held(cls, keys: Sequence[str], rows: Tensor) -> Features:
        """Return features that are made already: rows [n, ...] of n pictures."""
        made = cls((), _none, _nothing)
        made._rows, made._held = {key: number for number, key in enumerate(keys)}, rows
        return made

    def __call__(self, keys: Sequence[str]) -> Tensor:
        """Return the rows of pictures, [n, ...] float32.

        Raises:
            TrainingError: a picture is not among those that were read.
        """
        missing = [key for key in keys if key not in self._rows]
        if missing:
            raise TrainingError(f"The picture {missing[0]!r} is not among the {len(self._rows)} that were read.")
        places = [self._rows[key] for key in keys]
        rows = self._held[places]
        return rows if isinstance(rows, Tensor) else torch.from_numpy(np.asarray(rows)).float()


def _none(key: str) -> Bad:
    return Bad(key, "it was not among those that were read")


def _nothing(_: Sequence[Image.Image]) -> Tensor:
    return torch.empty(0)
