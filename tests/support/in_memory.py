"""A store of pictures that are there already, for data sets of adapters."""

from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from lvlm_guard.errors import ImageError


@dataclass(frozen=True)
class InMemory:
    """Pictures by key; see `lvlm_guard.adapters.data.pictures.Store`."""

    pictures: Mapping[str, Image.Image]

    def load(self, key: str) -> Image.Image:
        if key not in self.pictures:
            raise ImageError(f"There is no picture {key!r} among the {len(self.pictures)} given.")
        return self.pictures[key]

    def __str__(self) -> str:
        return "memory"
