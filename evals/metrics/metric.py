"""How a kind of task is scored: counts of each answer, and scores of the counts summed over pictures.

A kind is one subclass of `Metric` and one line of `METRICS`. Questions about one picture depend on each other, so
counts are summed over pictures, and every score is a function of such sums, mostly a ratio of two (`Columns`):
intervals and paired tests follow by themselves (`lvlm_guard.evals.stats`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pkgutil import resolve_name
from typing import Any, ClassVar, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lvlm_guard.evals.errors import DataError

METRICS: dict[str, str] = {
    "pope": "yes_no:YesNo",
    "mme": "yes_no:Mme",
    "repope": "yes_no:RePope",
    "dash_b": "yes_no:DashB",
    "amber": "amber:Amber",
    "amber_captions": "amber:AmberCaptions",
    "chair": "chair:Chair",
    "opope": "opope:Opope",
    "mmhal": "mmhal:MMHal",
    "mmhal_verdicts": "mmhal:Verdicts",
    "stock": "stock:Stock",
    "mentions": "yes_no:Mentions",
}
"""Kind of task -> "module:class" in this package, which is imported when a task of the kind is scored."""

Array = NDArray[np.float64]
Places = NDArray[np.int64]
Direction = Literal["higher", "lower", ""]  # which way is better; "" where neither is


@dataclass(frozen=True)
class Score:
    """A figure that is made of a task's counts, and how a report treats it."""

    of: Callable[[Array], Array]  # counts summed over pictures, [..., k] -> [...]; NaN where it is not defined
    direction: Direction = "higher"
    compared: bool = True  # differences between decoders are result rows too
    once: bool = False  # the same for every decoder (the share of the labels): a row of the first one only
    over: Literal["pool", "sum"] = "pool"  # in "..._all", counts are pooled, or scores summed (MME's points)
    limit: int | None = None  # tokens after which captions were cut for it; None: they are whole
    n: Callable[[Array], Array] | None = None  # how many samples have it, of summed counts; None: all of the row task
    dialect: str = ""  # how captions were read for it; "" where there is one way
    only_differences: bool = False  # it compares two decoders by itself (n2p), so that it is no value of one

    def at(self, columns: slice | list[int], **changes: Any) -> Score:
        """Return the same score of counts that stand in other columns."""
        return replace(self, of=lambda counts: self.of(counts[..., columns]), **changes)

    def where_counted(self) -> Score:
        """Return the same score, not defined where the first count is 0."""
        return replace(self, of=lambda counts: np.where(counts[..., 0] > 0, self.of(counts), np.nan))


@dataclass
class Items:
    """The items of one task and split, in their order; `rows` are the row tasks that each counts in ("pope_random")."""

    keys: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    truths: list[Any] = field(default_factory=list)
    rows: list[tuple[str, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class Batch:
    """Some answers to items of one task, of any decoders, [B]."""

    places: Places  # of each one's item in `Items`
    texts: Sequence[str]
    ended: NDArray[np.bool_]  # False where the token limit cut it
    cut_at: Sequence[Sequence[int] | None]  # characters after the first `spec.answers.LIMITS` tokens, where known


class Metric(ABC):
    """Scores the answers to one task: as `EvalTask.describe()` has it ("name", "kind", "vocabulary", "about" ...).
    Raises `DataError` (an item has no truth that answers can be held against)."""

    joined: ClassVar[bool] = False  # several row tasks also stand together, as "pope_all"
    ranked: ClassVar[bool] = False  # answers have a score of yes (`ranking`)
    whole: ClassVar[bool] = False  # `count` must see all answers of one decoder and seed, in the order of the items

    def __init__(self, task: Mapping[str, Any], items: Items) -> None:
        self.task, self.items, self.name = task, items, str(task["name"])
        self.warnings: list[str] = []

    @abstractmethod
    def count(self, batch: Batch) -> Array:
        """Return the counts of each answer, [B, k], in the batch's order; k is the same for every batch."""

    def finish(self, sums: Array) -> Array:
        """Return what is summed over pictures, [..., P, k'], given each picture's own counts, [..., P, k]."""
        return sums

    @abstractmethod
    def scores(self) -> Mapping[str, Score]:
        """Return metric -> score, once all answers were counted."""


class TextMetric(Metric):
    """Reads each text by itself, and equal ones once."""

    def __init__(self, task: Mapping[str, Any], items: Items) -> None:
        super().__init__(task, items)
        self.cases: Places = np.arange(len(items.keys))  # [N]; equal texts to items of one case count alike

    @abstractmethod
    def read(self, text: str, case: int) -> Sequence[float]:
        """Return the counts of an answer, [k], to an item of `cases`."""

    def count(self, batch: Batch) -> Array:
        """Return what `read` counts in each answer."""
        asked = list(zip(batch.texts, self.cases[batch.places].tolist(), strict=True))
        row = {answer: number for number, answer in enumerate(dict.fromkeys(asked))}
        counts = np.array([self.read(*answer) for answer in row], np.float64)
        return counts[[row[answer] for answer in asked]]


def metric_of(kind: str) -> type[Metric]:
    """Return the class that scores a kind of task; raises `DataError` where there is none."""
    if kind not in METRICS:
        raise DataError(f"No kind of task is called {kind!r}; known are {', '.join(METRICS)}.")
    return cast("type[Metric]", resolve_name(f"lvlm_guard.evals.metrics.{METRICS[kind]}"))


def share(part: ArrayLike, whole: ArrayLike, empty: float = 0.0) -> Array:
    """Return part / whole, and `empty` for 0/0: 0.0, as the published scorers have it."""
    top, bottom = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    return cast(Array, np.divide(top, bottom, out=np.full(top.shape, empty), where=bottom != 0))


class Columns:
    """Names of counts, in their order, between blanks."""

    def __init__(self, names: str) -> None:
        self.names = names.split()

    def sum(self, counts: Array, names: str) -> Array:
        """Return the sum of columns, [...]: "n -tp -fp" takes two away, "tp tp" is twice tp."""
        total = np.zeros(counts.shape[:-1])
        for name in names.split():
            column = counts[..., self.names.index(name.removeprefix("-"))]
            total = total - column if name.startswith("-") else total + column
        return total

    def ratio(self, parts: str, direction: Direction = "higher", empty: float = 0.0, **more: Any) -> Score:
        """Return the score that is one sum over another, "tp / tp fp"; `empty` for 0/0."""
        part, whole = parts.split(" / ")
        return Score(lambda counts: share(self.sum(counts, part), self.sum(counts, whole), empty), direction, **more)
