"""Rows about pictures: what captions and values have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Generic, Self

from PIL import Image

from lvlm_guard.adapters.data import parting, pictures
from lvlm_guard.adapters.data.errors import DataError
from lvlm_guard.adapters.data.pictures import Bad, OnBad, Store
from lvlm_guard.adapters.data.rows import Row


class Pictured(Generic[Row]):
    """A frozen dataclass of rows and the store of their pictures; its fields are the subclass's."""

    rows: Sequence[Row]
    store: Store
    name: str
    on_bad: OnBad
    dropped: Mapping[str, int]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def load(self, image: str) -> Image.Image | Bad:
        """Return a picture by its key, or with on_bad="skip" a `Bad`; raises `DataError`."""
        return pictures.load(self.store, image, self.on_bad)

    @cached_property
    def images(self) -> list[str]:
        """The keys of the pictures, each once, in order of the rows."""
        return list(dict.fromkeys(row.image for row in self.rows))

    @property
    def splits(self) -> set[str]:
        """The splits that rows say they are of."""
        return {row.split for row in self.rows if row.split}

    def part(self, split: str) -> Self:
        """Return the rows of a split; raises `DataError` where there is none."""
        return self.with_rows(parting.of_split(self.rows, split, self.name))

    def parted(self, share: float = 0.1, seed: int = 0) -> tuple[Self, Self]:
        """Return (train, validation): the rows' own splits where they have "val", else cut by picture.

        Raises:
            DataError, KnobError: as `parting.cut` does.
        """
        if "val" in self.splits:
            return self.with_rows([row for row in self.rows if row.split in (None, "train")]), self.part("val")
        rows = [row for row in self.rows if row.split != "test"]
        train, validation = parting.cut(rows, share, seed, self.name)
        return self.with_rows(train), self.with_rows(validation)

    def without(self, bad: Sequence[Bad]) -> Self:
        """Return what is left when the rows of these pictures go, counted among the dropped.

        Raises:
            DataError: nothing is left.
        """
        gone = {item.image for item in bad}
        if gone >= set(self.images):
            raise DataError(f"{self.name}: none of its {len(gone)} pictures can be read. {bad[0].reason}")
        dropped = {**self.dropped, "pictures that can't be read": len(gone)}
        return self._replaced(rows=[row for row in self.rows if row.image not in gone], dropped=dropped)

    def with_rows(self, rows: Sequence[Row]) -> Self:
        """Return the same store with other rows."""
        return self._replaced(rows=tuple(rows))

    def _replaced(self, **changed: Any) -> Self:
        own: Any = self  # a dataclass in every subclass, which no type can say
        made: Self = replace(own, **changed)
        return made
