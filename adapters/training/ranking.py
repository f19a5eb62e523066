"""What a ranker learns by: groups of pictures under one instruction, some of which show none of what it asks for.

The release draws negatives from all rows but the chosen ones, so that pictures which hold the object under another row
are told they hold none, and keeps the group's order in a counter of the data set, which mixes instructions under other
batch sizes or several workers. Here a negative is a picture whose own value for the object is 0, and groups come whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lvlm_guard.adapters.data import RankData, RankRow
from lvlm_guard.adapters.data.pictures import Features
from lvlm_guard.adapters.evaluation.metrics import better
from lvlm_guard.adapters.evaluation.ranking import Lists, Scored
from lvlm_guard.adapters.ranker.ranker import Ranker
from lvlm_guard.adapters.training.recipe import Figures, Recipe
from lvlm_guard.errors import KnobError


class Member(NamedTuple):
    """A picture in a group: its name, what the group is about, and the picture's value."""

    image: str
    object: str
    value: float


class Groups:
    """Draws groups. The object is drawn uniformly, then its pictures without replacement, by their weight.

    An object whose pictures all have the same value is left out. Group n depends on the seed and n alone.

    Args:
        rows: values of pictures. A missing row means unknown, except for the objects in `exhaustive`.
        size: pictures in a group; fewer where an object has fewer.
        negatives: share of a group drawn from pictures without the object, as far as there are any.
        exhaustive: objects that a picture does not show unless a row says so.
        seed: of the draws.

    Raises:
        KnobError: a size or share that is none, a weight that is not above 0, several values of a picture, or no object
            has two pictures of unequal value.
    """

    def __init__(
        self,
        rows: Sequence[RankRow],
        size: int = 64,
        *,
        negatives: float = 0.2,
        exhaustive: Collection[str] = (),
        seed: int = 0,
    ) -> None:
        if size < 2 or not 0 <= negatives < 1:
            raise KnobError(
                f"A group has {size} pictures, {negatives} of them negatives: give 2 pictures or more, and a share "
                "from 0 to below 1."
            )
        if any(row.weight is not None and not row.weight > 0 for row in rows):
            raise KnobError("A row's weight is not above 0: give a positive one, or leave the row out.")
        self.size, self.negatives, self.seed = size, negatives, seed
        self._shown: dict[str, list[Member]] = {}
        self._chance: dict[str, NDArray[np.float64]] = {}
        self._without: dict[str, list[Member]] = {}
        pictures = list(dict.fromkeys(row.image for row in rows))
        about: dict[str, list[RankRow]] = {}
        for row in rows:
            about.setdefault(row.object, []).append(row)
        for name, its in about.items():
            self._add(name, its, pictures if name in exhaustive else [])
        self.objects = [name for name in about if self._teaches(name)]
        if not self.objects:
            raise KnobError(
                "No object has two pictures of unequal value, so there is nothing to order: give more values for each "
                "object, or name it as exhaustive so that pictures without a row count as showing none."
            )
        self.epoch = max(1, -(-sum(len(self._shown[name]) for name in self.objects) // size))
        """Groups that cover the rows once."""

    def _add(self, name: str, rows: Sequence[RankRow], pictures: Sequence[str]) -> None:
        values = {row.image: row.value for row in rows}
        for row in rows:
            if values[row.image] != row.value:
                raise KnobError(f"{row.image!r} has several values for {name!r}: give one.")
        weights = {row.image: row.weight for row in rows}
        shown = [Member(image, name, value) for image, value in values.items() if value]
        often = Counter(member.value for member in shown)
        # a given weight counts alone: the released ones are inverse frequencies already
        given = [(weights[member.image], often[member.value]) for member in shown]
        chance = np.array([1 / times if weight is None else weight for weight, times in given])
        absent = [image for image, value in values.items() if value == 0]
        absent += [image for image in pictures if image not in values]
        self._shown[name], self._without[name] = shown, [Member(image, name, 0.0) for image in absent]
        self._chance[name] = chance / chance.sum() if shown else chance

    def _teaches(self, name: str) -> bool:
        with_none = bool(self._without[name]) and self.negatives > 0
        return len({member.value for member in self._shown[name]}) + with_none > 1

    def group(self, number: int) -> list[Member]:
        """Return group `number`."""
        rng = np.random.default_rng([self.seed, *divmod(number, self.epoch)])
        name = self.objects[int(rng.integers(len(self.objects)))]
        shown, without = self._shown[name], self._without[name]
        none = min(len(without), round(self.size * self.negatives))
        some = min(len(shown), self.size - none)
        members = []
        if some:
            members = [shown[int(k)] for k in rng.choice(len(shown), some, replace=False, p=self._chance[name])]
        members += [without[int(k)] for k in (rng.choice(len(without), none, replace=False) if none else [])]
        return [members[int(k)] for k in rng.permutation(len(members))]


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
    """Makes groups to train on.

    Args:
        data: to train on.
        source: tokens where the trunk is frozen, else pixels, of its pictures.
        recipe: how; its `batch` is a group's size.
        negatives: share of a group without the object.
    """

    shares = False

    def __init__(self, data: RankData, source: Features, recipe: Recipe, negatives: float = 0.2) -> None:
        self.data, self.source = data, source
        self.groups = Groups(data.rows, recipe.batch, negatives=negatives, exhaustive=data.exhaustive, seed=recipe.seed)

    def batch(self, number: int, share: int = 0, of: int = 1) -> Group:
        """Return group `number`, whole."""
        members = self.groups.group(number)
        values = torch.tensor([member.value for member in members])
        return Group(self.source([m.image for m in members]), self.data.instruction(members[0].object), values)


class RankingTask:
    """Trains a ranker.

    Args:
        ranker: to train, with the scales of its instructions in its card.
        lists: of validation.
        seen: of the pictures of both.
        data, recipe, negatives: as of `GroupBatches`.
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
        return self.lists.figures(self.scored(self.lists))._asdict()

    def better(self, figures: Figures, best: Figures | None) -> bool:
        """Return whether the order is better: by SRCC, ties by MAE."""
        return better(figures, best)

    @torch.inference_mode()
    def _tokens(self, pixels: Tensor) -> Tensor:
        return torch.cat([self.model.image_tokens(part.to(self.model.device)) for part in pixels.split(64)])
