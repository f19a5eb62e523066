"""What is made of pictures once and needed at every step: pixels, or what a frozen tower sees in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.adapters.data.pictures import Bad

AT_ONCE = 64
ROOM = 4 << 30  # bytes that one set of features may take; beyond it they are made anew at each step

Load = Callable[[str], Image.Image | Bad]
Encode = Callable[[Sequence[Image.Image]], Tensor]


class Features:
    """Tensors of pictures by key; in memory where they fit, which changes no number: each is what `encode` gives.

    Args:
        keys: of the pictures.
        load: gives a picture or a `Bad`.
        encode: pictures to a tensor, a row each, on the CPU.
        advance: told how many pictures were encoded.
        room: bytes that may be taken.
    """

    def __init__(
        self,
        keys: Sequence[str],
        load: Load,
        encode: Encode,
        advance: Callable[[int], object] = lambda _: None,
        room: int = ROOM,
    ) -> None:
        self._load, self._encode = load, encode
        self._rows: dict[str, int] = {}
        self._held: Tensor | None = None
        self.bad: list[Bad] = []
        parts: list[Tensor] = []
        self.keeps = True
        for start in range(0, len(keys), AT_ONCE):
            some, made = self._made(keys[start : start + AT_ONCE])
            advance(len(keys[start : start + AT_ONCE]))
            if made is None:
                continue
            if made[0].nbytes * len(keys) > room:
                self.keeps = False
                self.bad.clear()
                break
            self._rows |= {key: len(self._rows) + k for k, key in enumerate(some)}
            parts.append(made)
        if self.keeps and parts:
            self._held = torch.cat(parts)

    @classmethod
    def held(cls, keys: Sequence[str], rows: Tensor) -> Features:
        """Return features that are made already: rows [n, ...] of n pictures."""
        made = cls((), lambda key: Bad(key, "it was not among those that were read"), lambda _: torch.empty(0))
        made._rows, made._held = {key: number for number, key in enumerate(keys)}, rows
        return made

    def __call__(self, keys: Sequence[str]) -> tuple[list[int], Tensor]:
        """Return which of the keys are of pictures that can be read, and their rows, [n, ...]."""
        if self._held is not None:
            places = [place for place, key in enumerate(keys) if key in self._rows]
            return places, self._held[[self._rows[keys[place]] for place in places]]
        some, made = self._made(list(dict.fromkeys(keys)))
        row = {key: number for number, key in enumerate(some)}
        places = [place for place, key in enumerate(keys) if key in row]
        return places, torch.empty(0) if made is None else made[[row[keys[place]] for place in places]]

    def _made(self, keys: Sequence[str]) -> tuple[list[str], Tensor | None]:
        pictures = {}
        for key in keys:
            picture = self._load(key)
            if isinstance(picture, Bad):
                self.bad.append(picture)
            else:
                pictures[key] = picture
        return list(pictures), self._encode(list(pictures.values())) if pictures else None
