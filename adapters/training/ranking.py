"""What a ranker learns by: groups of pictures under one instruction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lvlm_guard.adapters.data import RankData
from lvlm_guard.adapters.evaluation.lists import Lists, Scored
from lvlm_guard.adapters.ranker.groups import GroupSampler
from lvlm_guard.adapters.ranker.metrics import RankingFigures, better
from lvlm_guard.adapters.ranker.ranker import Ranker
from lvlm_guard.adapters.training.errors import TrainingError
from lvlm_guard.adapters.training.features import Features
from lvlm_guard.adapters.training.recipe import Recipe
from lvlm_guard.adapters.training.task import Figures

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
        self.ranker, self.model, self.data, self.lists, self.seen = ranker, ranker.model, data, lists, seen
        self.still = bool(ranker.model.trunk_is_frozen)
        self.groups = GroupSampler(
            data.rows, recipe.batch, negatives=negatives, exhaustive=data.exhaustive, seed=recipe.seed
        )

    def batch(self, number: int) -> Group:
        """Return group `number`."""
        self.groups.set_epoch(number // len(self.groups))
        members = self.groups.group(number % len(self.groups))
        places, seen = self.seen([member.image for member in members])
        if len(places) < 2:
            raise TrainingError(
                f"Only {len(places)} of {len(members)} pictures of group {number} can be read: too few to order. "
                f"{self.seen.bad[0].reason}"
            )
        values = torch.tensor([members[place].value for place in places])
        return Group(seen, self.data.instruction(members[0].object), values)

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
            places, seen = self.seen(keys)
            if len(places) < len(keys):
                raise TrainingError("A picture that was read before can't be read any more.")
            tokens = seen if self.still else self._tokens(seen)
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
