"""Answers counted as they stream by: what stays in memory is a few numbers an answer, and counts of each picture.

The table is gone through twice. First it is seen which answers are there, so that an item that any decoder lacks is
left out of all of them; then they are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.metric import Array, Batch, Items, Metric, Places
from lvlm_guard.evals.metrics.registry import metric_of
from lvlm_guard.evals.metrics.yes_no import said_of

Run = tuple[str, int]
"""A decoder and one of its seeds."""

FAILED_TEXT = "[LMMS_EVAL_REQUEST_FAILED"  # what lmms-eval's clients answer for a request that failed
WORK = {name: name for name in ("tokens", "forwards", "local_forwards", "local_tokens", "masks")}
WORK["forwards"] = "global_forwards"
"""Columns of an answer's work -> metrics: means an answer; calls and masks of a batch are shared by its answers."""
SHOWN = 3


@dataclass
class Found:
    """Some answers that need a word: how many, and the first of them."""

    n: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, n: int, first: Sequence[str]) -> None:
        """Count n more."""
        self.n += n
        self.first += first[: SHOWN - len(self.first)]


@dataclass
class Given:
    """What one decoder gave in one seed; arrays are over the items of the task, [N]."""

    there: NDArray[np.uint8]  # how often the item was answered (failures aside): 0 or 1
    score: NDArray[np.float32]  # log-odds of yes, nats, NaN where there is none
    said: NDArray[np.int8]  # 1 yes, 0 no, -1 unreadable (yes/no tasks)
    mass: NDArray[np.float32]  # share of the probability on yes or no, NaN where it is not known
    text: Places  # digest of the answer, to see which are the same
    censored: int = 0  # answers whose server told too little
    work: Array = field(default_factory=lambda: np.zeros(len(WORK)))  # sums
    failed: Found = field(default_factory=Found)
    empty: Found = field(default_factory=Found)
    cut: Found = field(default_factory=Found)
    unreadable: Found = field(default_factory=Found)
    texts: dict[int, str] = field(default_factory=dict)  # where scoring needs all of them at once


class Tally:
    """One task (as `EvalTask.describe()` has it) and split: what was asked, and what was answered.

    Another split than the task's own is of items to calibrate on, which are no results. The texts of decoders in `keep`
    are kept, since others derive their answers from them.
    """

    def __init__(self, task: Mapping[str, Any], split: str, items: Items, keep: frozenset[str] = frozenset()) -> None:
        self.task, self.split, self.items, self.name = task, split, items, str(task["name"])
        self.calibrates = split != task.get("split", "test")
        self.metric: Metric = metric_of(str(task["kind"]))(task, items)
        self.at = {key: place for place, key in enumerate(items.keys)}
        if len(self.at) < len(items.keys):
            twice = next(key for place, key in enumerate(items.keys) if self.at[key] != place)
            raise DataError(f"Item {twice!r} of {self.name} stands twice among the items.")
        self.runs: dict[Run, Given] = {}
        self.keep = keep
        self.whole = np.zeros(len(items.keys), bool)
        self.sums = np.zeros((0, 0, 0))  # run, cell, count
        # numbers of pictures do not depend on the order of the items
        names = sorted(set(items.pictures), key=lambda name: (len(name), name))
        of = {name: number for number, name in enumerate(names)}
        self.pictures = len(names)
        self.picture = np.array([of[name] for name in items.pictures], np.int64)  # [N]
        self.yes = np.array([truth == "yes" for truth in items.truths], bool)  # [N], of yes/no tasks
        rows: dict[str, list[int]] = {}
        for place, names_of in enumerate(items.rows):
            for row in names_of:
                rows.setdefault(row, []).append(place)
        self.rows = {row: np.array(places, np.int64) for row, places in rows.items()}  # row task -> its items
        self._cells()

    def _cells(self) -> None:
        """Number the pairs of a row task and a picture, the cells that counts are summed in."""
        self.cells: dict[str, tuple[int, Places]] = {}  # row task -> its first cell, and each cell's picture
        most = max((len(rows) for rows in self.items.rows), default=1)
        self._cell = np.full((len(self.items.keys), max(1, most)), -1)
        filled = np.zeros(len(self.items.keys), np.int64)
        first = 0
        for row, places in self.rows.items():
            pictures, index = np.unique(self.picture[places], return_inverse=True)
            self.cells[row] = first, pictures
            self._cell[places, filled[places]] = first + index
            filled[places] += 1
            first += len(pictures)
        self.number_of_cells = first

    def see(self, rows: pa.RecordBatch) -> None:
        """Note which answers are there, of this task and split; raises `DataError` of one that stands twice."""
        failed = pc.fill_null(pc.or_(pc.is_valid(rows["failed"]), _failed(rows["text"])), False).to_numpy(False)
        for run, chosen, places in self.by_run(rows):
            given = self.runs[run] = self.runs.get(run) or self._new()
            bad = failed[chosen]
            np.add.at(given.there, places[~bad], 1)
            if given.there[places].max(initial=0) > 1:
                key = self.items.keys[int(places[given.there[places] > 1][0])]
                raise DataError(f"{run[0]} has two answers to item {key!r} of {self.name} with seed {run[1]}.")
            told = chosen[bad][:SHOWN].tolist()
            why = [short(rows["failed"][i].as_py() or rows["text"][i].as_py()) for i in told]
            given.failed.add(int(bad.sum()), self._told(run, places[bad], why))

    def seen(self) -> None:
        """Settle, once all were seen, which items every decoder answered."""
        self.whole = np.ones(len(self.items.keys), bool)
        for given in self.runs.values():
            self.whole &= given.there > 0

    def add(self, rows: pa.RecordBatch) -> None:
        """Count answers; rows of this task and split alone."""
        parts = list(self.by_run(rows))
        ended = rows["ended"].to_numpy(zero_copy_only=False)
        texts = rows["text"].to_pylist()
        score, mass = _floats(rows["score"]), _floats(rows["mass"])
        censored = rows["censored"].to_numpy(zero_copy_only=False)
        cut_at = rows["cut_at"].to_pylist() if rows["cut_at"].null_count < len(rows) else [None] * len(texts)
        work = np.stack([rows[name].to_numpy(zero_copy_only=False) for name in WORK], -1)
        for number, (run, chosen, places) in enumerate(parts):
            given = self.runs[run]
            there = given.there[places] > 0
            chosen, places = chosen[there], places[there]
            parts[number] = run, chosen, places
            given.score[places] = score[chosen]
            given.mass[places] = mass[chosen]
            given.censored += int(censored[chosen].sum())
            given.work += work[chosen].sum(0, dtype=np.float64)
            said = [texts[i] for i in chosen.tolist()]
            given.text[places] = [hash(text) for text in said]
            blank, cut = np.array([not text or text.isspace() for text in said], bool), ~ended[chosen]
            given.empty.add(int(blank.sum()), self._told(run, places[blank], ()))
            tails = [_tail(said[i]) for i in np.flatnonzero(cut)[:SHOWN]]
            given.cut.add(int(cut.sum()), self._told(run, places[cut], tails))
            if self.metric.whole or run[0] in self.keep:
                given.texts.update(zip(places.tolist(), said, strict=True))
        if not self.metric.whole:
            self._count(parts, texts, ended, cut_at)

    def counted(self) -> None:
        """Count what needs all answers at once."""
        if self.metric.whole:
            for run, given in self.runs.items():
                self._count_whole(run, {place: given.texts[place] for place in np.flatnonzero(self.whole).tolist()})
                given.texts.clear()

    def derive(self, decoder: str, answers: Mapping[int, tuple[str, float]]) -> None:
        """Add the answers of a decoder that nobody asked: place -> text and score, nats."""
        given = self._new()
        places, texts = list(answers), {place: text for place, (text, _) in answers.items()}
        given.there[places] = 1
        given.score[places] = [score for _, score in answers.values()]
        given.text[places] = [hash(text) for text in texts.values()]
        self.runs[decoder, 0] = given
        self._count_whole((decoder, 0), texts)

    def decoders(self) -> list[str]:
        """Return who answered, in the order of the table."""
        return list(dict.fromkeys(decoder for decoder, _ in self.runs))

    def seeds(self, decoder: str) -> list[int]:
        """Return the places of a decoder's runs among `runs`, by seed."""
        found = sorted((seed, place) for place, (name, seed) in enumerate(self.runs) if name == decoder)
        return [place for _, place in found]

    def of(self, decoder: str) -> list[Given]:
        """Return what a decoder gave, seed by seed."""
        runs = list(self.runs.values())
        return [runs[place] for place in self.seeds(decoder)]

    def _count_whole(self, run: Run, texts: Mapping[int, str]) -> None:
        n = len(texts)
        part = run, np.arange(n), np.array(list(texts), np.int64)
        self._count([part], list(texts.values()), np.ones(n, bool), [None] * n)

    def _count(
        self, parts: list[tuple[Run, Places, Places]], texts: list[str], ended: NDArray[np.bool_], cut_at: list[Any]
    ) -> None:
        """Count answers, and sum them in their cells; items that some decoder lacks are read, and not summed."""
        chosen, places = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
        if not len(chosen):
            return
        order = chosen.tolist()
        counts = self.metric.count(Batch(places, [texts[i] for i in order], ended[chosen], [cut_at[i] for i in order]))
        numbers = {run: number for number, run in enumerate(self.runs)}
        if missing := len(numbers) - len(self.sums):
            grown = np.zeros((missing, self.number_of_cells, counts.shape[1]))
            self.sums = np.concatenate([self.sums, grown]) if len(self.sums) else grown
        if self.metric.ranked:
            said, start = said_of(counts), 0
            for run, rows, at in parts:
                mine = said[start : start + len(at)]
                self.runs[run].said[at] = mine
                first = [short(texts[i]) for i in rows[mine < 0][:SHOWN].tolist()]
                self.runs[run].unreadable.add(int((mine < 0).sum()), self._told(run, at[mine < 0], first))
                start += len(at)
        run_of = np.repeat([numbers[run] for run, _, _ in parts], [len(at) for _, _, at in parts])
        flat = self.sums.reshape(-1, counts.shape[1])
        for cells in self._cell[places].T:
            fit = (cells >= 0) & self.whole[places]
            _add(flat, run_of[fit] * self.number_of_cells + cells[fit], counts[fit])

    def _told(self, run: Run, places: Places, texts: Sequence[str]) -> list[str]:
        """Name the first few answers of a run, each with a text if there are any."""
        names = [self.items.keys[place] + (f" (seed {run[1]})" if run[1] else "") for place in places[:SHOWN].tolist()]
        return [f"{name}: {text}" for name, text in zip(names, texts, strict=True)] if texts else names

    def by_run(self, rows: pa.RecordBatch) -> Iterator[tuple[Run, Places, Places]]:
        """Yield each decoder and seed, its rows, and their items' places; raises `DataError` of a row of no item."""
        keys = rows["item"].dictionary_encode()
        names = keys.dictionary.to_pylist()
        if (strange := next((name for name in names if name not in self.at), None)) is not None:
            raise DataError(f"There is an answer to item {strange!r} of {self.name}, which is not among its items.")
        places = np.array([self.at[name] for name in names], np.int64)[keys.indices.to_numpy()]
        decoders = rows["decoder"].dictionary_encode()
        seeds = rows["seed"].to_numpy().astype(np.int64)
        codes = decoders.indices.to_numpy() * (1 + seeds.max(initial=0)) + seeds
        order = np.argsort(codes, kind="stable")
        for chosen in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
            if len(chosen):
                yield (rows["decoder"][int(chosen[0])].as_py(), int(seeds[chosen[0]])), chosen, places[chosen]

    def _new(self) -> Given:
        n = len(self.items.keys)
        score, mass = np.full((2, n), np.nan, np.float32)
        return Given(np.zeros(n, np.uint8), score, np.full(n, -1, np.int8), mass, np.zeros(n, np.int64))


def short(text: str, most: int = 80) -> str:
    """Return a text on one line, in quotes, its end left out where it is long."""
    flat = " ".join(text.split())
    return f'"{flat if len(flat) <= most else flat[: most - 3] + "..."}"'


def _tail(text: str, most: int = 40) -> str:
    flat = " ".join(text.split())
    return f'"{flat if len(flat) <= most else "..." + flat[3 - most :]}"'


def _failed(texts: pa.Array) -> pa.Array:
    return pc.starts_with(pc.utf8_ltrim_whitespace(texts), FAILED_TEXT)


def _floats(column: pa.Array) -> NDArray[np.float32]:
    found: NDArray[np.float32] = column.to_numpy(zero_copy_only=False).astype(np.float32)  # None becomes NaN
    return found


def _add(table: Array, at: Places, rows: Array) -> None:
    """Add rows to those of a table at `at`, which may repeat: sorted sums are faster than numpy's add.at."""
    if not len(at):
        return
    order = np.argsort(at, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(at[order]) > 0]))
    table[at[order][starts]] += np.add.reduceat(rows[order], starts, axis=0)
