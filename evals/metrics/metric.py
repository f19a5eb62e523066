"""How a kind of task is scored: counts of each answer, and scores of the counts summed over pictures.

A kind is one subclass of `Metric` and one line of `registry.METRICS`. The picture is the unit of the statistics, since
its questions depend on each other: counts are summed over pictures, and every score is a function of such sums, so
intervals and paired tests follow by themselves (`lvlm_guard.evals.stats`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lvlm_guard.evals.errors import DataError

Array = NDArray[np.float64]
Places = NDArray[np.int64]
Direction = Literal["higher", "lower", ""]
"""Which way is better; "" where neither is."""


@dataclass(frozen=True)
class Score:
    """One score of a kind."""

    of: Callable[[Array], Array]  # counts summed over pictures, [..., k] -> [...]; NaN where it is not defined
    direction: Direction = "higher"
    compared: bool = True  # differences between decoders are result rows too
    once: bool = False  # the same for every decoder (the share of the labels): a row of the first one only
    over: Literal["pool", "sum"] = "pool"  # in "..._all", counts are pooled, or scores summed (MME's points)
    limit: int | None = None  # tokens after which captions were cut for it; None: they are whole
    n: Callable[[Array], Array] | None = None  # how many samples have it, of summed counts; None: all of the row task
    dialect: str = ""  # how captions were read for it (CHAIR); "" where there is one way
    only_differences: bool = False  # it compares two decoders by itself (n2p), so that it is no value of one


@dataclass
class Items:
    """The items of one task and split, in their order; `rows` are the row tasks that each counts in ("pope_random")."""

    keys: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    truths: list[Any] = field(default_factory=list)
    tags: list[Mapping[str, Any]] = field(default_factory=list)
    rows: list[tuple[str, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class Batch:
    """Some answers to items of one task, of any decoders, [B]."""

    places: Places  # of each one's item in `Items`
    texts: Sequence[str]
    ended: NDArray[np.bool_]  # False where the token limit cut it
    cut_at: Sequence[Sequence[int] | None]  # characters after the first `spec.answers.LIMITS` tokens, where known


class Metric:
    """Scores the answers to one task: as `EvalTask.describe()` has it ("name", "kind", "vocabulary", "about" ...).

    Raises:
        DataError: an item has no truth that answers can be held against.
    """

    joined: ClassVar[bool] = False
    """Whether several row tasks also stand together, as "pope_all"."""
    ranked: ClassVar[bool] = False
    """Whether answers have a score of yes (`yes_no.YesNo`)."""
    whole: ClassVar[bool] = False
    """Whether `count` must see all answers of one decoder and seed at once, in the order of the items."""

    def __init__(self, task: Mapping[str, Any], items: Items) -> None:
        self.task, self.items = task, items
        self.warnings: list[str] = []

    def count(self, batch: Batch) -> Array:
        """Return the counts of each answer, [B, k], in the batch's order; k is the same for every batch."""
        raise NotImplementedError

    def finish(self, sums: Array) -> Array:
        """Return what is summed over pictures, [..., P, k'], given each picture's own counts, [..., P, k]."""
        return sums

    def scores(self) -> Mapping[str, Score]:
        """Return metric -> score, once all answers were counted."""
        raise NotImplementedError


def share(part: ArrayLike, whole: ArrayLike, empty: float = 0.0) -> Array:
    """Return part / whole, and `empty` for 0/0: 0.0, as the published scorers have it."""
    top, bottom = np.asarray(part, float), np.asarray(whole, float)
    found: Array = np.divide(
        top, bottom, out=np.full(np.broadcast_shapes(top.shape, bottom.shape), empty), where=bottom != 0
    )
    return found


@dataclass(frozen=True)
class Columns:
    """Names of counts, in their order, from a column on; most scores are ratios of sums of them."""

    names: Sequence[str]
    start: int = 0

    def sum(self, counts: Array, names: str) -> Array:
        """Return the sum of columns, [...], named between blanks: "n -tp -fp" takes two away, "tp tp" is twice tp."""
        total = np.zeros(counts.shape[:-1])
        for name in names.split():
            column = counts[..., self.start + self.names.index(name.removeprefix("-"))]
            total = total - column if name.startswith("-") else total + column
        return total

    def ratio(self, part: str, whole: str, empty: float = 0.0) -> Callable[[Array], Array]:
        """Return the score that is one sum over another; `empty` for 0/0."""
        return lambda counts: share(self.sum(counts, part), self.sum(counts, whole), empty)


def labels_of(task: Mapping[str, Any], items: Items) -> NDArray[np.bool_]:
    """Return whether the right answer is yes, [N]; raises `DataError` of a truth that is neither "yes" nor "no"."""
    for key, truth in zip(items.keys, items.truths, strict=True):
        if truth not in ("yes", "no"):
            raise DataError(f"Item {key!r} of {task['name']} has the truth {truth!r}: it must be 'yes' or 'no'.")
    return np.array([truth == "yes" for truth in items.truths], dtype=bool)


def each(texts: Iterable[str], places: Places, read: Callable[[str, int], Sequence[float]], columns: int) -> Array:
    """Return `read(text, place)` of each answer, [B, columns]."""
    rows = [read(text, place) for text, place in zip(texts, places.tolist(), strict=True)]
    return np.array(rows, dtype=np.float64).reshape(-1, columns)
