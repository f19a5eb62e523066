"""Pictures under one instruction each, with their values: what rankings are measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lvlm_guard.adapters.data import RankData
from lvlm_guard.adapters.errors import DataError
from lvlm_guard.adapters.ranker.metrics import RankingFigures, mean_figures, ranking_figures

LEAST = 8  # pictures of an object, below which a correlation is luck
ZEROS = 0.2  # share of pictures without the object, as in the groups that are trained on

Values = NDArray[np.float64]
Scored = Mapping[str, Values]
"""Object -> a number for each picture of its list."""


@dataclass(frozen=True)
class Lists:
    """Lists of pictures by what they are ordered by.

    Args:
        keys: object -> pictures.
        values: object -> their values.
        instructions: object -> what the ranker is asked.
    """

    keys: Mapping[str, tuple[str, ...]]
    values: Scored
    instructions: Mapping[str, str]

    @classmethod
    def of(
        cls, data: RankData, *, least: int = LEAST, zeros: float = ZEROS, readable: Collection[str] | None = None
    ) -> Lists:
        """Return the lists of a data set; where most pictures hold none of an object, only some of those are taken.

        Args:
            data: values of pictures.
            least: pictures with a value other than 0 that an object must have.
            zeros: most of a list may be pictures of value 0.
            readable: pictures that can be read; None for all.

        Raises:
            DataError: no object has enough pictures of unequal value.
        """
        keys: dict[str, tuple[str, ...]] = {}
        values: dict[str, Values] = {}
        for name in data.objects:
            images, found = data.values(name)
            kept = [k for k, image in enumerate(images) if readable is None or image in readable]
            shown = [k for k in kept if found[k] != 0]
            none = sorted((k for k in kept if found[k] == 0), key=lambda k: _place(images[k], name))
            chosen = sorted([*shown, *none[: round(len(shown) * zeros / (1 - zeros))]])
            if len(shown) >= least and np.ptp(found[chosen]) > 0:
                keys[name] = tuple(images[k] for k in chosen)
                values[name] = found[chosen]
        if not keys:
            raise DataError(
                f"{data.name}: no object has {least} pictures of unequal value, so nothing can be measured. Give more "
                "pictures of each."
            )
        return cls(keys, values, {name: data.instruction(name) for name in keys})

    @property
    def images(self) -> list[str]:
        """All pictures, each once."""
        return list(dict.fromkeys(key for keys in self.keys.values() for key in keys))

    def scored(self, score: Callable[[str, Sequence[str]], Values]) -> dict[str, Values]:
        """Return a number for each picture of each list, from (object, pictures) -> numbers."""
        return {name: np.asarray(score(name, keys), np.float64) for name, keys in self.keys.items()}

    def figures(self, scored: Scored, picked: Mapping[str, NDArray[np.int64]] | None = None) -> RankingFigures:
        """Return the mean figures of all lists, or of some pictures of them, repeated or not."""
        each = {}
        for name, values in self.values.items():
            at = slice(None) if picked is None else picked[name]
            if len(values[at]):
                each[name] = ranking_figures(scored[name][at], values[at])
        return mean_figures(each)

    def picked(self, times: Mapping[str, int]) -> dict[str, NDArray[np.int64]]:
        """Return the places in each list of pictures that were drawn so many times."""
        return {
            name: np.repeat(np.arange(len(keys)), [times.get(key, 0) for key in keys])
            for name, keys in self.keys.items()
        }


def _place(image: str, name: str) -> bytes:
    """Return what pictures are drawn by: the same ones, whatever else there is."""
    return hashlib.sha256(f"{name}\0{image}".encode()).digest()
