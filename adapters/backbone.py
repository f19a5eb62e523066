"""A CLIP and what turns pictures and words into its inputs, from a folder or a hub id; for every adapter the same.

CLIP's stock processor crops the middle out of a picture, and what stands at the edges of a photograph is then never
seen. Here the whole picture is squashed to the square, whose frame is that of `Match.relevance`; cards record it.
A `Trunk` says where tokens of a CLIP come from, for ViT and ConvNeXt towers.
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
from torch.nn.functional import interpolate

from lvlm_guard.adapters.loading import TINY
from lvlm_guard.embedded import EMBEDDED as EMBEDDED  # it names the tiny CLIP too, whose folder differs by machine
from lvlm_guard.errors import TextError, UnsupportedModelError, WeightsError
from lvlm_guard.images import as_rgb, squash
from lvlm_guard.weights import how_to_fetch, read

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OLD_EOS = 2  # CLIP configs older than transformers 4.31 name this one; the true one has the highest id


class Trunk:
    """Reads tokens from a CLIP; holds no weights of its own.

    Of a ViT they are the patches: the class token is dropped, and so are prompts that a tuner put after the patches. Of
    a ConvNeXt they are its last feature map, before it is averaged.

    Args:
        clip: a `CLIPModel` or a `VisionTextDualEncoderModel`.
    """

    def __init__(self, clip: Any) -> None:
        text, vision = clip.config.text_config, clip.config.vision_config
        widths: Sequence[int] = getattr(vision, "hidden_sizes", None) or [vision.hidden_size]
        self.clip = clip
        self.text_width: int = text.hidden_size
        self.context: int = text.max_position_embeddings
        self.side, self.image_width = int(vision.image_size), widths[-1]
        self.step: int = vision.patch_size * 2 ** (len(widths) - 1)  # a ConvNeXt halves its map between widths

    def image_tokens(self, pixel_values: Tensor) -> Tensor:
        """Return a picture's tokens, [K, P, image_width], from pixels [K, 3, height, width]."""
        states = self._seen(pixel_values)
        if states.ndim == 4:
            return states.flatten(2).transpose(1, 2)
        rows, columns = self.grid(*pixel_values.shape[-2:])
        return states[:, 1 : 1 + rows * columns]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return rows and columns of a picture's tokens, P = rows * columns, for its size in pixels."""
        return height // self.step, width // self.step

    def text_tokens(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the tokens of texts, [N, T, text_width], after the final norm, and where they are, [N, T] bool.

        A text ends with its end token, also where padding repeats that token.
        """
        states = self.clip.text_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        end = self.clip.config.text_config.eos_token_id
        at = input_ids.argmax(-1) if end == OLD_EOS else (input_ids == end).int().argmax(-1)
        kept = torch.arange(input_ids.shape[-1], device=input_ids.device) <= at[:, None]
        return states, kept if attention_mask is None else kept & attention_mask.bool()

    def _seen(self, pixel_values: Tensor) -> Tensor:
        states: Tensor = self.clip.vision_model(pixel_values=pixel_values).last_hidden_state
        return states


TOWERS = ("clip_vision_model", "convnext", "convnextv2")
"""Image towers that can be read, by their `model_type`."""


def trunk_of(clip: Any) -> Trunk:
    """Return the trunk of a CLIP; raises `UnsupportedModelError` where it is none, or has towers that can't be read."""
    own = getattr(clip, "trunk", None)
    if isinstance(own, Trunk):
        return own
    config = getattr(clip, "config", None)
    vision, text = (getattr(getattr(config, f"{of}_config", None), "model_type", None) for of in ("vision", "text"))
    if vision not in TOWERS or text != "clip_text_model" or not hasattr(clip, "text_model"):
        raise UnsupportedModelError(
            f"A ranker stands on a CLIP, but {type(clip).__name__} has the image tower {vision!r} and the text tower "
            f"{text!r}. Give a CLIPModel, or a VisionTextDualEncoderModel with CLIP's text tower and one of "
            f"{', '.join(TOWERS)}."
        )
    return Trunk(clip)


def salient(clip: Any, pixels: Tensor) -> Tensor:
    """Return how much a ViT's class token attends to each patch of pixels [n, 3, side, side] in the last layer.

    [n, patches] with sums below 1, of a `CLIPModel`, untuned or with prompts, which are no patches.
    """
    vision, held = clip.vision_model, list[Tensor]()

    def keep(_module: Any, _args: Any, output: Tensor) -> None:
        held.append(output)

    attention = getattr(vision.encoder.layers[-1], "base_layer", vision.encoder.layers[-1]).self_attn
    with attention.q_proj.register_forward_hook(keep), attention.k_proj.register_forward_hook(keep):
        vision(pixel_values=pixels.to(clip.dtype))
    q, k = (of.unflatten(-1, (vision.config.num_attention_heads, -1)).transpose(1, 2) for of in held[-2:])
    weights: Tensor = (q[:, :, :1] @ k.transpose(-1, -2) * k.shape[-1] ** -0.5).float().softmax(-1)
    cells = (pixels.shape[-1] // vision.config.patch_size) ** 2
    return weights.mean(1)[:, 0, 1 : 1 + cells]


def masked(pixels: Tensor, salience: Tensor, share: float) -> Tensor:
    """Return normalised pictures [n, 3, side, side] of which the most salient share of patches stays, one at least.

    The rest is the mean colour. `salience` is [n, patches], of a square grid; a share of 1 gives the picture itself.
    """
    kept = torch.zeros_like(salience).scatter(1, salience.topk(max(1, round(share * salience.shape[1])), 1).indices, 1)
    side = round(salience.shape[1] ** 0.5)
    return pixels * interpolate(kept.view(-1, 1, side, side), pixels.shape[-2:]).to(pixels)


Frame = Literal["squashed"]
"""How a picture of any shape becomes a square: the whole of it, its aspect ratio not kept."""

CLASSES = {"clip": "CLIPModel", "vision-text-dual-encoder": "VisionTextDualEncoderModel"}
"""Classes by the `model_type` of a config."""


def load_backbone(source: str | os.PathLike[str]) -> Any:
    """Return a CLIP in evaluation mode, in float32.

    Args:
        source: "embedded", a folder or hub id of a `CLIPModel` or of a `VisionTextDualEncoderModel` with a ConvNeXt, or
            one of open_clip, see `open_clip`.

    Raises:
        WeightsError: it can't be had.
        UnsupportedModelError: it is of another kind, or weights of it are missing.
    """
    import transformers

    from lvlm_guard.adapters import open_clip

    place = place_of(str(source))
    if open_clip.is_one(place):
        return open_clip.load(place)
    config = _read(place, lambda: transformers.AutoConfig.from_pretrained(place))
    if config.model_type not in CLASSES:
        raise UnsupportedModelError(
            f"{place!r} holds a model of the type {config.model_type!r}, but an adapter stands on a CLIP: "
            f"{' or '.join(CLASSES.values())}. Give one, such as openai/clip-vit-base-patch16."
        )
    kind = getattr(transformers, CLASSES[config.model_type])
    model, report = _read(place, lambda: kind.from_pretrained(place, dtype=torch.float32, output_loading_info=True))
    trunk_of(model)
    if report["missing_keys"]:
        raise UnsupportedModelError(
            f"{place!r} lacks the weights {', '.join(sorted(report['missing_keys'])[:3])}, ...: random ones would "
            "answer at random. Give a whole CLIP."
        )
    return model.eval()


def place_of(backbone: str) -> str:
    """Return the folder or hub id of a backbone as a card names it; raises `WeightsError` where it names none."""
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
    ) -> Inputs:
        """Return the inputs of a CLIP.

        Args:
            source: folder or hub id with its tokenizer and image processor; None for where it was loaded from.
            tokenizer, image_processor: where they are loaded already; of the latter only the mean and deviation of
                pixels count.

        Raises:
            WeightsError: they can't be had.
        """
        from transformers import AutoImageProcessor, AutoTokenizer

        place = str(source or clip.name_or_path)
        trunk, tokenizer = trunk_of(clip), tokenizer or getattr(clip, "tokenizer", None)
        tokenizer = tokenizer or _read(place, lambda: AutoTokenizer.from_pretrained(place))
        pixels = image_processor or getattr(clip, "image_processor", None)
        pixels = pixels or _read(place, lambda: AutoImageProcessor.from_pretrained(place))
        return cls(tokenizer, trunk.side, tuple(pixels.image_mean), tuple(pixels.image_std), trunk.context)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Return pixels of pictures of any size, [K, 3, side, side] float32; raises `ImageError`."""
        squashed = [np.asarray(squash(as_rgb(image), self.side, self.side)) for image in images]
        if not squashed:
            return torch.empty(0, 3, self.side, self.side)
        pixels = torch.from_numpy(np.stack(squashed)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(of)[:, None, None] for of in (self.mean, self.std))
        return (pixels - mean) / std

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return input_ids and attention_mask of texts, [N, T]; raises `TextError` of an empty or too long one."""
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
    return read(f"The CLIP {place!r}", place, load, absent=how_to_fetch(place, "--backbone DIR"))
