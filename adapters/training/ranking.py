"""Where a ranker starts: at what its CLIP already knows of which image token shows what a text names.

Ours, not the paper's: from random weights the fusion must first find out which direction of an image token belongs to
which word, for every object, from pair losses alone. CLIP's own projections say it, for patch tokens too, if less well
than for the class token. So the ranker's entries and the first queries and keys of its cross-attention are made of
them; all of it is trained on.

What a ranker learns by: groups of pictures under one instruction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lvlm_guard.adapters.data import RankData
from lvlm_guard.adapters.data.pictures import Features
from lvlm_guard.adapters.evaluation.metrics import RankingFigures, better
from lvlm_guard.adapters.evaluation.ranking import Lists, Scored
from lvlm_guard.adapters.ranker.groups import GroupSampler
from lvlm_guard.adapters.ranker.model import ClipRanker
from lvlm_guard.adapters.ranker.ranker import Ranker
from lvlm_guard.adapters.training.recipe import Figures, Recipe
from lvlm_guard.errors import UnsupportedModelError

SHARP = 2.0
"""Factor of queries and of keys, so that attention begins to choose; ours."""


@torch.no_grad()
def align(model: ClipRanker) -> None:
    """Make queries of image tokens and keys of text tokens alike where CLIP's own features are.

    Raises:
        UnsupportedModelError: the CLIP has no projections of the two sides into one space.
    """
    clip, fusion = model.clip, model.ranker.fusion
    image, text = getattr(clip, "visual_projection", None), getattr(clip, "text_projection", None)
    norm = getattr(clip.vision_model, "post_layernorm", None)
    if image is None or text is None or norm is None or image.weight.shape[1] != model.trunk.image_width:
        raise UnsupportedModelError(
            "A ranker can start aligned on a ViT CLIP alone, whose projections fit its tokens: give --start random."
        )
    width = model.settings.width
    joint = image.weight.shape[0]
    common = _orthogonal(width, joint)
    seen = common @ (image.weight * norm.weight)
    said = common @ text.weight
    with_image, with_text = (_entered(entry, to) for entry, to in ((fusion.in_image, seen), (fusion.in_text, said)))
    for layer in fusion.layers:
        turned = SHARP * _orthogonal(width, width)
        attention: Any = layer.cross_attention
        attention.q_proj.weight.copy_(turned @ with_image)
        attention.q_proj.bias.zero_()
        attention.k_proj.weight.copy_(turned @ with_text)


def _entered(entry: nn.Module, projection: Tensor) -> Tensor:
    """Put a projection into an entry; return what is left to do behind it: nothing, or all where it is none."""
    if isinstance(entry, nn.Linear):
        entry.weight.copy_(projection)
        entry.bias.zero_()
        return torch.eye(len(projection))
    return projection


def _orthogonal(rows: int, columns: int) -> Tensor:
    made: Tensor = nn.init.orthogonal_(torch.empty(rows, columns))
    return made


FIGURES = ("srcc", "mae", "plcc", "accuracy", "pair_accuracy", "absence_auroc")


@dataclass(frozen=True)
class Group:
    """Pictures under one instruction.

    Args:
        seen: [K, P, width] tokens of a frozen trunk, or [K, 3, side, side] pixels.
        instruction: what is asked.
        values: [K], in the units of the data.
    """

    seen: Tensor
    instruction: str
    values: Tensor


class GroupBatches:
    """Makes groups of pictures under one instruction.

    Args:
        data: to train on.
        source: tokens where the trunk is frozen, else pixels, of its pictures.
        recipe: how; its `batch` is a group's size.
        negatives: share of a group without the object.
    """

    shares = False

    def __init__(self, data: RankData, source: Features, recipe: Recipe, negatives: float = 0.2) -> None:
        self.data, self.source = data, source
        self.groups = GroupSampler(
            data.rows, recipe.batch, negatives=negatives, exhaustive=data.exhaustive, seed=recipe.seed
        )

    def batch(self, number: int, share: int = 0, of: int = 1) -> Group:
        """Return group `number`, whole."""
        self.groups.set_epoch(number // len(self.groups))
        members = self.groups.group(number % len(self.groups))
        seen = self.source([member.image for member in members])
        values = torch.tensor([member.value for member in members])
        return Group(seen, self.data.instruction(members[0].object), values)


class RankingTask:
    """Trains a ranker.

    Args:
        ranker: to train, with the scales of its instructions in its card.
        data: to train on.
        lists: of validation.
        seen: tokens where the trunk is frozen, else pixels, of the pictures of both.
        recipe: how; its `batch` is a group's size.
        negatives: share of a group without the object.
    """

    keeps_all = False

    def __init__(
        self, ranker: Ranker, data: RankData, lists: Lists, seen: Features, recipe: Recipe, negatives: float = 0.2
    ) -> None:
        self.ranker, self.model, self.lists, self.seen = ranker, ranker.model, lists, seen
        self.still = bool(ranker.model.trunk_is_frozen)
        self.batches = GroupBatches(data, seen, recipe, negatives)

    def loss(self, model: nn.Module, batch: Group) -> tuple[Tensor, dict[str, float]]:
        """Return the pairs' loss and the scores' beside it."""
        device = self.model.device
        mean, std = self.ranker.card.scale(batch.instruction)
        words = {name: ids.to(device) for name, ids in self.ranker.inputs.tokens([batch.instruction]).items()}
        given = {"image_tokens" if self.still else "pixel_values": batch.seen.to(device)}
        out: Any = model(**given, **words, labels=((batch.values - mean) / std).to(device))
        return out.loss, {}

    def scored(self, lists: Lists) -> Scored:
        """Return the scores of lists whose pictures' features are held."""

        def score(name: str, keys: Any) -> Any:
            tokens = self.seen(keys) if self.still else self._tokens(self.seen(keys))
            return self.ranker.rank_tokens(tokens, lists.instructions[name]).scores.numpy()

        return lists.scored(score)

    def measure(self) -> Figures:
        """Return the mean figures over the validation's lists."""
        figures = self.lists.figures(self.scored(self.lists))
        return {name: float(getattr(figures, name)) for name in FIGURES}

    def better(self, figures: Figures, best: Figures | None) -> bool:
        """Return whether the order is better: by SRCC, ties by MAE."""
        return better(_named(figures), None if best is None else _named(best))

    @torch.inference_mode()
    def _tokens(self, pixels: Tensor) -> Tensor:
        return torch.cat([self.model.image_tokens(part.to(self.model.device)) for part in pixels.split(64)])


def _named(figures: Figures) -> RankingFigures:
    return RankingFigures(**{name: figures[name] for name in FIGURES}, cyclic_triples=np.nan)
