"""The pictures and questions behind a batch of inputs, which the guarded processor hands on; and their pixels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lvlm_guard.errors import MissingViewError

if TYPE_CHECKING:
    from PIL.Image import Image

VIEWS = "guard_views"  # the key under which a guarded processor hands its pictures to generate()


@dataclass
class View:
    """One picture of a request. A call writes nothing on it: what a method made of it is in `GuardTrace.views`."""

    image: Image  # the picture as the user gave it, RGB
    text: str  # the matching text, or "" where none was found
    index: int = 0  # its place among the pictures of the call
    local: Image | None = None  # the caller's own second view (`guard_images`); None where a method is to make one
    note: str | None = None  # what a reader of the trace should know of the text

    @property
    def own(self) -> Image:
        """The caller's own second view; raises `MissingViewError` where he gave none."""
        if self.local is None:
            raise MissingViewError(
                f"Picture {self.index} came without a second view, while others have one of the caller's own "
                "(guard_images). Give one for each picture, or none."
            )
        return self.local


@dataclass(eq=False)
class Pictures:
    """The pictures and questions behind a batch of inputs; travels with the inputs as `guard_views`.

    It holds no second view yet: those are made at the first decoding step that needs them. It is plain
    data, so that a DataLoader's workers can make inputs.
    """

    rows: list[list[View]]  # for each request its views, in the order of the prompt's placeholders
    text: str | list[str] = ""  # the prompts, as the processor got them
    args: tuple[Any, ...] = ()  # the processor's further arguments by position
    kwargs: dict[str, Any] = field(default_factory=dict)  # and by name
    given: bool = False  # whether the caller brought the second views (`guard_images=`)

    @classmethod
    def of(cls, found: Any) -> Pictures:
        """Return pictures as they are, or those of several inputs that a pipeline or a DataLoader put in a list.

        Raises:
            MissingViewError: it is something else.
        """
        if isinstance(found, cls):
            return found
        parts = list(found) if isinstance(found, list | tuple) else []
        if not parts or not all(isinstance(part, cls) for part in parts):
            raise MissingViewError(
                f"guard_views is a {type(found).__name__}, not what the guarded processor gave. Pass on all that it "
                "returns, unchanged: model.generate(**inputs)."
            )
        texts = [text for part in parts for text in part.prompts()]
        places = count()
        rows = [[replace(view, index=next(places)) for view in row] for part in parts for row in part.rows]
        given = any(part.given for part in parts)
        if given and not all(part.given for part in parts):
            raise MissingViewError(
                "Some of these inputs have second views of the caller's own (guard_images), some have none. Give them "
                "for all, or for none."
            )
        return cls(rows, texts, parts[0].args, parts[0].kwargs | {"padding": True}, given)

    def only(self, requests: list[int]) -> Pictures:
        """Return the pictures of some requests."""
        text = self.text if isinstance(self.text, str) else [self.text[request] for request in requests]
        return replace(self, rows=[self.rows[request] for request in requests], text=text)

    def __len__(self) -> int:
        return len(self.rows)

    def prompts(self) -> list[str]:
        """Return the prompts, one a request."""
        return [self.text] if isinstance(self.text, str) else self.text

    def views(self) -> list[View]:
        """Return every picture's view, request after request."""
        return [view for row in self.rows for view in row]

    def images(self) -> list[list[Image]]:
        """Return the pictures themselves, of each request."""
        return [[view.image for view in row] for row in self.rows]

    def to(self, *_: Any, **__: Any) -> Pictures:
        """Return itself: `{k: v.to(device) for k, v in inputs.items()}` is how many scripts move inputs."""
        return self


def units(tensors: dict[str, Tensor]) -> list[Tensor]:
    """Return the pixels as views of their tensors that depend on no neighbour in the batch.

    A unit is a picture where patches come with a grid [pictures, 3], and else what stands under one index of the
    first axis, without the zeros that pad it to its neighbours' tiles and sizes.
    """
    found = []
    for key, pixels in tensors.items():
        if not torch.is_tensor(pixels) or not pixels.is_floating_point() or "mask" in key:
            continue
        grids = [grid.prod(-1) for name, grid in tensors.items() if name.endswith("grid_thw")]
        if grids and int(grids[0].sum()) == len(pixels):
            found += list(pixels.split(grids[0].tolist()))
            continue
        padded = pixels.ndim > 4 or len(tensors) > 1
        for unit in pixels.split(1):
            for axis in range(1, unit.ndim) if padded else ():
                used = unit.transpose(0, axis).flatten(1).abs().amax(-1).nonzero()
                unit = unit.narrow(axis, 0, int(used.max()) + 1 if len(used) else 1)
            found.append(unit)
    return found


def noise(pixels: Tensor, seed: int) -> Tensor:
    """Return standard normal noise for one unit, float32 on its device, fixed by the seed and the picture alone.

    So batching changes no picture's noise, and the sampler's random stream is left alone. A still picture stands in two
    time slices of its patches [patches, 3 * 2 * side * side]; both get the same.
    """
    digest = hashlib.blake2b(pixels.detach().float().cpu().numpy().tobytes(), digest_size=7)
    digest.update(str(seed).encode())
    generator = torch.Generator().manual_seed(int.from_bytes(digest.digest(), "big"))
    side = (pixels.shape[-1] / 6) ** 0.5
    if pixels.ndim == 2 and side == int(side):
        one = torch.randn(len(pixels), 3, 1, int(side) ** 2, generator=generator)
        return one.expand(-1, -1, 2, -1).reshape(pixels.shape).to(pixels.device)
    return torch.randn(pixels.shape, generator=generator).to(pixels.device)
