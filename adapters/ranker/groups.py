"""Groups to train on: pictures under one instruction, some of which show none of what it asks for.

The release draws negatives from all rows but the chosen ones, so that pictures which hold the object under another row
are told they hold none, and keeps the group's order in a counter of the data set, which mixes instructions under other
batch sizes or several workers. Here a negative is a picture whose own value for the object is 0, and a sampler hands
out whole groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lvlm_guard.errors import KnobError


class Row(Protocol):
    """One value of one picture."""

    @property
    def image(self) -> str:
        """Name of the picture; several rows may have one."""

    @property
    def object(self) -> str:
        """What the value is about."""

    @property
    def value(self) -> float | None:
        """How much of it the picture shows; None: not known, also where absence would mean 0."""

    @property
    def weight(self) -> float | None:
        """How often the row is drawn beside others of its object; None: the rarer its value, the more often."""


class Member(NamedTuple):
    """A picture in a group: its name, what the group is about, and the picture's value."""

    image: str
    object: str
    value: float


class GroupSampler:
    """A batch sampler whose batches are groups under one instruction; pass it to a `DataLoader` as `batch_sampler`.

    A data set is asked for each `Member`. The object is drawn uniformly, then its pictures without replacement, by
    their weight; one whose pictures all have the same value is left out (`left_out`).
    Batch n of an epoch depends on the seed, the epoch and n alone.

    Args:
        rows: values of pictures. A missing row means unknown, except for the objects in `exhaustive`.
        size: pictures in a group; fewer where an object has fewer.
        negatives: share of a group drawn from pictures without the object, as far as there are any.
        batches: groups in an epoch; None for as many as cover the rows once.
        exhaustive: objects that a picture does not show unless a row says so.
        seed: of the draws.

    Raises:
        KnobError: a size or share that is none, a weight that is not above 0, or no object has two pictures of unequal
            value.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        size: int = 64,
        *,
        negatives: float = 0.2,
        batches: int | None = None,
        exhaustive: Collection[str] = (),
        seed: int = 0,
    ) -> None:
        if size < 2 or not 0 <= negatives < 1 or (batches is not None and batches < 1):
            raise KnobError(
                f"A group has {size} pictures, {negatives} of them negatives, and an epoch {batches} groups: give 2 "
                "pictures or more, a share from 0 to below 1, and 1 group or more."
            )
        if any(row.weight is not None and not row.weight > 0 for row in rows):
            raise KnobError("A row's weight is not above 0: give a positive one, or leave the row out.")
        self.size, self.negatives, self.seed, self.epoch = size, negatives, seed, 0
        self._positive: dict[str, list[Member]] = {}
        self._chance: dict[str, NDArray[np.float64]] = {}
        self._negative: dict[str, list[Member]] = {}
        pictures = list(dict.fromkeys(row.image for row in rows))
        about: dict[str, list[Row]] = {}
        for row in rows:
            about.setdefault(row.object, []).append(row)
        for name, its in about.items():
            self._add(name, its, pictures if name in exhaustive else [])
        self.objects = [name for name, members in self._positive.items() if self._teaches(name, members)]
        self.left_out = [name for name in self._positive if name not in self.objects]
        if not self.objects:
            raise KnobError(
                "No object has two pictures of unequal value, so there is nothing to order: give more values for each "
                "object, or name it as exhaustive so that pictures without a row count as showing none."
            )
        used = sum(len(self._positive[name]) for name in self.objects)
        self.batches = batches or max(1, -(-used // size))

    def _add(self, name: str, rows: Sequence[Row], pictures: Sequence[str]) -> None:
        values = {row.image: row.value for row in rows}
        if len(values) < len(rows):
            twice = next(image for image, times in Counter(row.image for row in rows).items() if times > 1)
            if len({row.value for row in rows if row.image == twice}) > 1:
                raise KnobError(f"{twice!r} has several values for {name!r}: give one.")
        weights = {row.image: row.weight for row in rows}
        shown = [Member(image, name, value) for image, value in values.items() if value is not None and value != 0]
        frequency = Counter(member.value for member in shown)
        # a given weight counts alone: the released ones are inverse frequencies already
        drawn = [(weights[member.image], frequency[member.value]) for member in shown]
        chance = np.array([1 / often if weight is None else weight for weight, often in drawn])
        self._positive[name] = shown
        self._chance[name] = chance / chance.sum() if len(chance) else chance
        absent = [image for image, value in values.items() if value == 0]
        absent += [image for image in pictures if image not in values]
        self._negative[name] = [Member(image, name, 0.0) for image in absent]

    def _teaches(self, name: str, shown: Sequence[Member]) -> bool:
        unequal = {member.value for member in shown}
        with_none = bool(self._negative[name]) and self.negatives > 0
        return len(unequal) + with_none > 1

    def set_epoch(self, epoch: int) -> None:
        """Draw other groups from now on: those of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[Member]]:
        for batch in range(self.batches):
            yield self.group(batch)

    def group(self, batch: int) -> list[Member]:
        """Return group number `batch` of this epoch."""
        rng = np.random.default_rng([self.seed, self.epoch, batch])
        name = self.objects[int(rng.integers(len(self.objects)))]
        shown, without = self._positive[name], self._negative[name]
        none = min(len(without), round(self.size * self.negatives))
        some = min(len(shown), self.size - none)
        members = []
        if some:
            members = [shown[int(k)] for k in rng.choice(len(shown), some, replace=False, p=self._chance[name])]
        members += [without[int(k)] for k in (rng.choice(len(without), none, replace=False) if none else [])]
        return [members[int(k)] for k in rng.permutation(len(members))]
