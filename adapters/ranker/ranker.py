"""`Ranker`: a trained ranker that takes pictures and words, and gives numbers in the units it was trained on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.adapters.backbone import Inputs
from lvlm_guard.adapters.ranker.card import RankerCard
from lvlm_guard.adapters.ranker.model import load, save
from lvlm_guard.errors import LogitsError, UnsupportedCallError

Device = str | torch.device | None

AT_ONCE = 64
"""Pictures in one pass of the image tower, and rows in one pass of the ranker where no pairs are compared."""

PATH = 8
"""Places between a picture of ground and a picture at which a map's gradient is taken; ours."""


class Ranking(NamedTuple):
    """Scores [K] in the units of the data, and logits [K, K], above 0 where the row's picture shows more."""

    scores: Tensor
    logits: Tensor

    def order(self) -> list[int]:
        """Return the pictures' places from most to least: by their mean chance to show more, ties by score."""
        wins = torch.sigmoid(self.logits.double()).mean(1)
        return sorted(range(len(self.scores)), key=lambda k: (-float(wins[k]), -float(self.scores[k]), k))


class Ranker:
    """Scores, orders and counts, on the CPU's side of the door: results are float32 tensors on the CPU.

    Args:
        model: a `PeftModel` on a `ClipRanker`, or a `ClipRanker`.
        card: what its numbers mean.
        inputs: of its CLIP.
    """

    def __init__(self, model: Any, card: RankerCard, inputs: Inputs) -> None:
        self.model, self.card, self.inputs = model.eval(), card, inputs

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, model: Any = None, device: Device = None, inputs: Inputs | None = None
    ) -> Ranker:
        """Load a ranker as `model.load`; no `device` is the CPU, no `inputs` are those that lie with the CLIP."""
        wrapped, card = load(folder, model)
        if inputs is None:
            place = model if isinstance(model, str | os.PathLike) else wrapped.clip.name_or_path or card.backbone
            inputs = Inputs.of(wrapped.clip, place)
        ready: Any = wrapped
        return cls(ready.to(torch.device(device or "cpu")), card, inputs)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write the adapter and its card; return the card's path."""
        return save(self.model, self.card, folder)

    def rank(self, images: Sequence[Image.Image], instruction: str) -> Ranking:
        """Score K pictures under an instruction and compare each with each.

        The instruction is a whole sentence; `card.asked(object)` makes the one it was trained on.

        Raises:
            ImageError: a picture can't be used.
            TextError: the instruction is empty or too long.
            LogitsError: the ranker gave no number.
            UnsupportedCallError: its adapter is switched off.
        """
        return self.rank_tokens(self.image_tokens(images), instruction)

    @torch.no_grad()
    def image_tokens(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the trunk's tokens of pictures, [K, P, width] on the model's device, for `rank_tokens`."""
        if not images:
            rows, columns = self.model.trunk.grid(self.inputs.side, self.inputs.side)
            return torch.empty(0, rows * columns, self.model.trunk.image_width)
        parts = [images[at : at + AT_ONCE] for at in range(0, len(images), AT_ONCE)]
        return torch.cat([self.model.image_tokens(self.inputs.pixels(part).to(self.model.device)) for part in parts])

    @torch.no_grad()
    def rank_tokens(self, image_tokens: Tensor, instruction: str) -> Ranking:
        """Do what `rank` does, for pictures whose tokens are known."""
        said = self._forward(image_tokens, [instruction])
        mean, std = self.card.scale(instruction)
        return Ranking(_finite(said.scores) * std + mean, _finite(said.logits))

    @torch.no_grad()
    def values(self, images: Sequence[Image.Image], objects: Sequence[str]) -> Tensor:
        """Return the score of picture i under the instruction about object i, [N]; a picture may come several times."""
        known = {id(image): image for image in images}
        tokens = dict(zip(known, self.image_tokens(list(known.values())), strict=True))
        asked = [self.card.asked(name) for name in objects]
        parts = [torch.empty(0)]
        for at in range(0, len(images), AT_ONCE):
            rows = torch.stack([tokens[id(image)] for image in images[at : at + AT_ONCE]])
            parts.append(_finite(self._forward(rows, asked[at : at + AT_ONCE], pairs=False).scores))
        scale = torch.tensor([self.card.scale(one) for one in asked]).view(-1, 2)
        return torch.cat(parts) * scale[:, 1] + scale[:, 0]

    def count(self, image: Image.Image, name: str) -> float:
        """Return how many of an object a picture shows, 0 or more, not rounded."""
        return max(0.0, float(self.values([image], [name])[0]))

    def absent(self, image: Image.Image, name: str) -> float:
        """Return the probability that a picture shows none of an object; raises as `RankerCard.absent`."""
        return self.card.absent(float(self.values([image], [name])[0]))

    def count_is_doubtful(self, said: float, image: Image.Image, name: str) -> bool:
        """Return whether a text's number of an object is further from the picture's count than the ranker errs."""
        return self.card.doubts(said, self.count(image, name))

    def presence(self, image: Image.Image, masked: Image.Image, name: str) -> float:
        """Return the logit that a picture shows more of an object than itself with a region masked.

        Near 0, masking took away nothing that the instruction asks for, so the object was probably not there.
        """
        return float(self.rank([image, masked], self.card.asked(name)).logits[0, 1])

    def relevance(self, image: Image.Image, name: str) -> tuple[Tensor, float]:
        """Return where a picture shows an object, [rows, columns] of tokens, and its score in the units of the data.

        The gradient of the score times the cross-attention to the text, rectified, summed over the text and averaged
        over heads and fusion layers, then stretched to 0 to 1 (all 0 where nothing raises the score). The gradient is
        the mean on the way from a picture of ground to this one (integrated gradients, arXiv:1703.01365): where a
        count is sure of itself, it hardly depends on the very tokens that it comes from.
        """
        asked = self.card.asked(name)
        tokens = self.image_tokens([image])
        ground = tokens.median(1, keepdim=True).values  # most tokens of a picture show ground
        shares = (torch.arange(PATH, device=tokens.device, dtype=tokens.dtype) + 1) / PATH
        way = ground + shares[:, None, None] * (tokens - ground)
        kept: list[Tensor] = []
        with torch.enable_grad():
            said = self._forward(way.requires_grad_(), [asked] * PATH, pairs=False, kept=kept)
            gradients = torch.autograd.grad(said.scores.sum(), kept)
        each = [
            (weights[-1] * slope.mean(0)).clamp(min=0).sum(-1).mean(0)
            for weights, slope in zip(kept, gradients, strict=True)
        ]
        heat = _finite(torch.stack(each).mean(0))
        low, high = float(heat.min()), float(heat.max())
        heat = (heat - low) / (high - low) if high > low else torch.zeros_like(heat)
        mean, std = self.card.scale(asked)
        rows, columns = self.model.trunk.grid(self.inputs.side, self.inputs.side)
        return heat.view(rows, columns), float(_finite(said.scores.detach())[-1]) * std + mean

    @torch.no_grad()
    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Return CLIP's own cosine of each picture with each text, [K, N]."""
        words = {name: ids.to(self.model.device) for name, ids in self.inputs.tokens(texts).items()}
        pixels = self.inputs.pixels(images).to(self.model.device)
        return _finite(self.model.similarity(pixels, **words))

    def _forward(self, image_tokens: Tensor, instructions: Sequence[str], **options: Any) -> Any:
        if getattr(self.model.ranker, "disable_adapters", False):
            raise UnsupportedCallError(
                "The ranker's adapter is switched off, and what is below it was never trained: rank outside "
                "disable_adapter(). CLIP's own numbers are `similarity`."
            )
        device = self.model.device
        words = {name: ids.to(device) for name, ids in self.inputs.tokens(instructions).items()}
        return self.model(image_tokens=image_tokens.to(device), **words, **options)


def _finite(numbers: Tensor) -> Tensor:
    if not bool(torch.isfinite(numbers).all()):
        raise LogitsError("The ranker gave a score that is no number. Its weights are damaged: train or copy it again.")
    return numbers.detach().float().cpu()
