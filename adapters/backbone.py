"""A CLIP and what turns pictures and words into its inputs, from a folder or a hub id; for every adapter the same.

CLIP's stock processor crops the middle out of a picture, and what stands at the edges of a photograph is then never
seen. Here the whole picture is squashed to the square, whose frame is that of `Match.relevance`; cards record it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.adapters.clip import TINY
from lvlm_guard.adapters.ranker.trunk import trunk_of
from lvlm_guard.errors import TextError, UnsupportedModelError, WeightsError
from lvlm_guard.images import as_rgb, squash
from lvlm_guard.weights import how_to_fetch, read

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMBEDDED = "embedded"
"""Names the tiny CLIP of this package, whose folder differs by machine."""

Frame = Literal["squashed"]
"""How a picture of any shape becomes a square: the whole of it, its aspect ratio not kept."""

CLASSES = {"clip": "CLIPModel", "vision-text-dual-encoder": "VisionTextDualEncoderModel"}
"""Classes by the `model_type` of a config."""


def load_backbone(source: str | os.PathLike[str], *, revision: str | None = None) -> Any:
    """Return a CLIP in evaluation mode, in float32.

    Args:
        source: "embedded", a folder or hub id of a `CLIPModel` or of a `VisionTextDualEncoderModel` with a ConvNeXt.
        revision: of a hub id.

    Raises:
        WeightsError: it can't be had.
        UnsupportedModelError: it is of another kind, or weights of it are missing.
    """
    import transformers

    place = place_of(str(source))
    at = {} if revision is None else {"revision": revision}
    config = _read(place, lambda: transformers.AutoConfig.from_pretrained(place, **at))
    if config.model_type not in CLASSES:
        raise UnsupportedModelError(
            f"{place!r} holds a model of the type {config.model_type!r}, but an adapter stands on a CLIP: "
            f"{' or '.join(CLASSES.values())}. Give one, such as openai/clip-vit-base-patch16."
        )
    kind = getattr(transformers, CLASSES[config.model_type])
    options = {"dtype": torch.float32, "output_loading_info": True, **at}
    model, report = _read(place, lambda: kind.from_pretrained(place, **options))
    trunk_of(model)
    if report["missing_keys"]:
        raise UnsupportedModelError(
            f"{place!r} lacks the weights {', '.join(sorted(report['missing_keys'])[:3])}, ...: random ones would "
            "answer at random. Give a whole CLIP."
        )
    return model.eval()


def place_of(backbone: str) -> str:
    """Return the folder or hub id of a backbone as a card names it.

    Raises:
        WeightsError: the card names none.
    """
    if not backbone:
        raise WeightsError(
            "The adapter does not say which CLIP it was trained on, because that one was made in memory: give it, "
            "from_pretrained(folder, model=...)."
        )
    return str(TINY) if backbone == EMBEDDED else backbone


def name_of(clip: Any) -> str:
    """Return how a backbone is named in a card: the package's own by a word, for its path differs by machine."""
    name = str(clip.name_or_path)
    return EMBEDDED if name and Path(name).resolve() == TINY.resolve() else name


@dataclass(frozen=True)
class Inputs:
    """Turns pictures and texts into a CLIP's inputs. Pictures are squashed, not cropped.

    Args:
        tokenizer: of the CLIP.
        side: of the square picture, in pixels.
        mean, std: per channel, of pixels in [0, 1].
        context: most tokens of a text, with begin and end.
    """

    tokenizer: PreTrainedTokenizerBase
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    context: int

    @classmethod
    def of(
        cls,
        clip: Any,
        source: str | os.PathLike[str] | None = None,
        *,
        tokenizer: Any = None,
        image_processor: Any = None,
        revision: str | None = None,
    ) -> Inputs:
        """Return the inputs of a CLIP.

        Args:
            clip: the model.
            source: folder or hub id with its tokenizer and image processor; None for where it was loaded from.
            tokenizer, image_processor: of the CLIP where they are loaded already; of the latter only the mean and
                deviation of pixels count.
            revision: of a hub id.

        Raises:
            WeightsError: they can't be had.
        """
        from transformers import AutoImageProcessor, AutoTokenizer

        place = str(source or clip.name_or_path)
        at = {} if revision is None else {"revision": revision}
        tokenizer = tokenizer or _read(place, lambda: AutoTokenizer.from_pretrained(place, **at))
        pixels = image_processor or _read(place, lambda: AutoImageProcessor.from_pretrained(place, **at))
        trunk = trunk_of(clip)
        return cls(tokenizer, trunk.side, tuple(pixels.image_mean), tuple(pixels.image_std), trunk.context)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Return pixels of pictures of any size, [K, 3, side, side] float32.

        Raises:
            ImageError: one can't be used.
        """
        squashed = [np.asarray(squash(as_rgb(image), self.side, self.side)) for image in images]
        if not squashed:
            return torch.empty(0, 3, self.side, self.side)
        pixels = torch.from_numpy(np.stack(squashed)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(of)[:, None, None] for of in (self.mean, self.std))
        return (pixels - mean) / std

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return input_ids and attention_mask of texts, [N, T].

        Raises:
            TextError: a text is empty, or longer than the CLIP can read.
        """
        for text in texts:
            length = len(self.tokenizer(text)["input_ids"])
            if not text.strip():
                raise TextError("The instruction is empty. Say what to rank the pictures by.")
            if length > self.context:
                raise TextError(
                    f"The instruction has {length} tokens, but this CLIP reads {self.context}, and what is cut off "
                    f"could be the object: shorten {text[:60]!r}."
                )
        both = self.tokenizer(list(texts), padding=True, return_tensors="pt")
        return {name: both[name] for name in ("input_ids", "attention_mask")}


def _read(place: str, load: Callable[[], Any]) -> Any:
    return read(
        f"The CLIP {place!r}",
        place,
        load,
        damaged="The folder is incomplete or damaged.",
        absent=how_to_fetch(place, "--backbone DIR"),
    )
