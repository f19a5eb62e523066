"""The table of answers, counted as it streams by: what stays is a few numbers an answer, and the counts that differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import sparse

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.metric import Array, Batch, Items, Metric, Places, metric_of
from lvlm_guard.evals.metrics.yes_no import said_of
from lvlm_guard.evals.spec.answers import SCHEMA

FAILED_TEXT = "[LMMS_EVAL_REQUEST_FAILED"  # what lmms-eval's clients answer for a request that failed
WORK = {name: name for name in ("tokens", "forwards", "local_forwards", "local_tokens", "masks")}
WORK["forwards"] = "global_forwards"
"""Columns of an answer's work -> metrics: means an answer; calls and masks of a batch are shared by its answers."""
SHOWN = 3
Fault = Literal["failed", "empty", "cut", "unreadable"]


@dataclass
class Given:
    """What one decoder gave in one seed; arrays are over the items of the task, [N]."""

    seed: int
    there: NDArray[np.uint8]  # how often the item was answered (failures aside): 0 or 1
    score: NDArray[np.float32]  # log-odds of yes, nats, NaN where there is none
    mass: NDArray[np.float32]  # share of the probability on yes or no, NaN where it is not known
    said: NDArray[np.int8]  # 1 yes, 0 no, -1 unreadable (yes/no tasks)
    text: Places  # digest of the answer, to see which are the same
    counts: Places  # which of `Tally.distinct` counts it has
    censored: int = 0  # answers whose server told too little
    work: Array = field(default_factory=lambda: np.zeros(len(WORK)))  # sums
    texts: dict[int, str] = field(default_factory=dict)  # where scoring needs all of them at once
    faults: dict[Fault, tuple[int, list[str]]] = field(default_factory=dict)  # how many, and the first of them

    def note(self, fault: Fault, keys: Sequence[str], texts: Sequence[str] = ()) -> None:
        """Count answers that need a word, and keep the first few, with texts where there are any."""
        n, first = self.faults.get(fault, (0, []))
        told = [key + (f" (seed {self.seed})" if self.seed else "") for key in keys[:SHOWN]]
        told = [f"{key}: {text}" for key, text in zip(told, texts, strict=True)] if texts else told
        self.faults[fault] = n + len(keys), [*first, *told][:SHOWN]


class Tally:
    """One task (as `EvalTask.describe()` has it) and split: what was asked, and what was answered. Another split than
    the task's own is of items to calibrate on, which are no results. The texts of decoders in `keep` are kept, since
    others derive their answers from them."""

    def __init__(self, task: Mapping[str, Any], split: str, items: Items, keep: frozenset[str] = frozenset()) -> None:
        self.task, self.split, self.items, self.name, self.keep = task, split, items, str(task["name"]), keep
        self.calibrates = split != task.get("split", "test")
        self.metric: Metric = metric_of(str(task["kind"]))(task, items)
        self.at = {key: place for place, key in enumerate(items.keys)}
        if len(self.at) < len(items.keys):
            twice = next(key for place, key in enumerate(items.keys) if self.at[key] != place)
            raise DataError(f"Item {twice!r} of {self.name} stands twice among the items.")
        # numbers of pictures do not depend on the order of the items
        names = sorted(set(items.pictures), key=lambda name: (len(name), name))
        number = {name: place for place, name in enumerate(names)}
        self.pictures, self.picture = len(names), np.array([number[name] for name in items.pictures], np.int64)  # [N]
        self.yes = np.array([truth == "yes" for truth in items.truths], bool)  # [N], of yes/no tasks
        rows: dict[str, list[int]] = {}
        for place, names_of in enumerate(items.rows):
            for row in names_of:
                rows.setdefault(row, []).append(place)
        self.rows = {row: np.array(places, np.int64) for row, places in rows.items()}  # row task -> its items
        self.runs: dict[tuple[str, int], Given] = {}  # by decoder and seed
        self.distinct: list[Array] = []  # parts of [counts that differ, k]
        self._known = 0

    def add(self, rows: pa.RecordBatch) -> None:
        """Count answers; rows of this task and split alone. Raises `DataError` of one that stands twice."""
        texts, told_failed = rows["text"].to_pylist(), rows["failed"].to_pylist()
        lost = pc.starts_with(pc.utf8_ltrim_whitespace(rows["text"]), FAILED_TEXT)
        failed: NDArray[np.bool_] = pc.or_(pc.is_valid(rows["failed"]), lost).to_numpy(False)
        score, mass, censored, ended = (_numbers(rows, name) for name in ("score", "mass", "censored", "ended"))
        cut_at = rows["cut_at"].to_pylist() if rows["cut_at"].null_count < len(rows) else [None] * len(texts)
        work = np.stack([_numbers(rows, name) for name in WORK], -1)
        for run, chosen, places in self.by_run(rows):
            given = self._given(run)
            bad = chosen[failed[chosen]].tolist()
            why = [short(told_failed[i] or texts[i]) for i in bad[:SHOWN]]
            given.note("failed", self._keys(places[failed[chosen]]), why)
            chosen, places = chosen[~failed[chosen]], places[~failed[chosen]]
            np.add.at(given.there, places, 1)
            if given.there[places].max(initial=0) > 1:
                key = self.items.keys[int(places[given.there[places] > 1][0])]
                raise DataError(f"{run[0]} has two answers to item {key!r} of {self.name} with seed {run[1]}.")
            given.score[places], given.mass[places] = score[chosen], mass[chosen]
            given.censored += int(censored[chosen].sum())
            given.work += work[chosen].sum(0, dtype=np.float64)
            said = [texts[i] for i in chosen.tolist()]
            given.text[places] = [hash(text) for text in said]
            blank = np.array([not text or text.isspace() for text in said], bool)
            given.note("empty", self._keys(places[blank]))
            cut = np.flatnonzero(~ended[chosen])
            given.note("cut", self._keys(places[cut]), [short(said[i], 40, end=True) for i in cut[:SHOWN].tolist()])
            if self.metric.whole or run[0] in self.keep:
                given.texts.update(zip(places.tolist(), said, strict=True))
            if not self.metric.whole:
                self._count(given, Batch(places, said, ended[chosen], [cut_at[i] for i in chosen.tolist()]))

    def seen(self) -> None:
        """Settle, once all were added, which items every decoder answered, and count what needs all answers at once."""
        self.whole = np.ones(len(self.items.keys), bool)  # [N]
        for given in self.runs.values():
            self.whole &= given.there > 0
        self.places = {row: at[self.whole[at]] for row, at in self.rows.items()}  # row task -> items that all answered
        for given in self.runs.values() if self.metric.whole else ():
            self._count_texts(given, {place: given.texts[place] for place in np.flatnonzero(self.whole).tolist()})
            given.texts.clear()

    def derive(self, decoder: str, answers: Mapping[int, tuple[str, float]]) -> None:
        """Add the answers of a decoder that nobody asked: place -> text and score, nats."""
        given, texts = self._given((decoder, 0)), {place: text for place, (text, _) in answers.items()}
        given.there[list(texts)] = 1
        given.score[list(texts)] = [score for _, score in answers.values()]
        given.text[list(texts)] = [hash(text) for text in texts.values()]
        self._count_texts(given, texts)

    def decoders(self) -> list[str]:
        """Return who answered, in the order of the table."""
        return list(dict.fromkeys(decoder for decoder, _ in self.runs))

    def of(self, decoder: str) -> list[Given]:
        """Return what a decoder gave, seed by seed."""
        return [self.runs[run] for run in sorted(run for run in self.runs if run[0] == decoder)]

    def sums(self, row: str, given: Given) -> Array:
        """Return the counts of a row task in one run, summed over the questions about each picture, [pictures, k]."""
        if len(self.distinct) > 1:
            self.distinct = [np.concatenate(self.distinct)]
        at = self.places[row]
        return summed(self.distinct[0][given.counts[at]], self.picture[at], self.pictures)

    def by_run(self, rows: pa.RecordBatch) -> Iterator[tuple[tuple[str, int], Places, Places]]:
        """Yield each decoder and seed, its rows, and their items' places; raises `DataError` of a row of no item."""
        keys = rows["item"].dictionary_encode()
        names = keys.dictionary.to_pylist()
        if (strange := next((name for name in names if name not in self.at), None)) is not None:
            raise DataError(f"There is an answer to item {strange!r} of {self.name}, which is not among its items.")
        places = np.array([self.at[name] for name in names], np.int64)[keys.indices.to_numpy()]
        decoders, seeds = rows["decoder"].dictionary_encode(), rows["seed"].to_numpy().astype(np.int64)
        for (decoder, seed), chosen in grouped(decoders.indices.to_numpy(), seeds):
            yield (decoders.dictionary[decoder].as_py(), seed), chosen, places[chosen]

    def _count_texts(self, given: Given, texts: Mapping[int, str]) -> None:
        n, places = len(texts), np.array(list(texts), np.int64)
        self._count(given, Batch(places, list(texts.values()), np.ones(n, bool), [None] * n))

    def _count(self, given: Given, batch: Batch) -> None:
        if not len(batch.places):
            return
        counts = self.metric.count(batch)
        distinct, which = np.unique(counts, axis=0, return_inverse=True)
        given.counts[batch.places] = self._known + which.reshape(-1)
        self._known += len(distinct)
        self.distinct.append(distinct)
        if self.metric.ranked:
            said = given.said[batch.places] = said_of(counts)
            lost = np.flatnonzero(said < 0)
            first = [short(batch.texts[i]) for i in lost[:SHOWN].tolist()]
            given.note("unreadable", self._keys(batch.places[lost]), first)

    def _keys(self, places: Places) -> list[str]:
        return [self.items.keys[place] for place in places.tolist()]

    def _given(self, run: tuple[str, int]) -> Given:
        if run not in self.runs:
            n = len(self.items.keys)
            score, mass = np.full((2, n), np.nan, np.float32)
            text, counts = np.zeros((2, n), np.int64)
            self.runs[run] = Given(run[1], np.zeros(n, np.uint8), score, mass, np.full(n, -1, np.int8), text, counts)
        return self.runs[run]


def grouped(*codes: Places) -> Iterator[tuple[tuple[int, ...], Places]]:
    """Yield each combination of codes, [B] each, with the places that have it, in order."""
    order = np.lexsort(codes[::-1])
    ends = np.flatnonzero(np.any([np.diff(code[order]) for code in codes], axis=0)) + 1
    for chosen in np.split(order, ends):
        if len(chosen):
            yield tuple(int(code[chosen[0]]) for code in codes), chosen


def summed(rows: Array, at: Places, n: int) -> Array:
    """Return rows, [B, k], summed by their places `at`, [n, k]."""
    chosen = sparse.csr_array((np.ones(len(at)), (at, np.arange(len(at)))), shape=(n, len(at)))
    return np.asarray(chosen @ rows, np.float64)


def short(text: str, most: int = 80, end: bool = False) -> str:
    """Return a text on one line, in quotes, its end (with `end` its beginning) left out where it is long."""
    flat = " ".join(text.split())
    if len(flat) > most:
        flat = f"...{flat[3 - most :]}" if end else f"{flat[: most - 3]}..."
    return f'"{flat}"'


def _numbers(rows: pa.RecordBatch, column: str) -> NDArray[Any]:
    return np.asarray(rows[column].to_numpy(zero_copy_only=False))  # None becomes NaN


BATCH = 2**15  # rows worked on at once
UNREAD = ("picture", "role", "baseline", "proof")  # columns that no score needs
Answers = Iterable[Any]  # a table, or batches of its rows
Tallies = dict[tuple[str, str], Tally]  # by task and split


@dataclass(frozen=True)
class Stored:
    """A parquet file as batches of rows, with the columns of a schema; read anew each time they are gone through."""

    path: Path
    schema: pa.Schema = SCHEMA

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows; raises `DataError` where the file can't be read, or lacks a column."""
        wanted = [name for name in self.schema.names if name not in UNREAD]
        try:
            with pq.ParquetFile(self.path) as file:
                yield from file.iter_batches(BATCH, columns=wanted)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path} can't be read: {error}. Is it a table of answers, and whole?") from error


def tallies_of(
    answers: Answers,
    items: Iterable[Mapping[str, Any]],
    tasks: Sequence[Mapping[str, Any]],
    keep: frozenset[str] = frozenset(),
) -> Tallies:
    """Count answers: task and split -> tally, in the order of the tasks; items of others are passed over. Arguments as
    of `score.score_answers`, `keep` as of `Tally`. Raises `DataError` where an answer stands twice or belongs to no
    item, or an item can't be scored."""
    listed: dict[tuple[str, str], Items] = {}
    for row in items:
        of = listed.setdefault((row["task"], row["split"]), Items())
        of.keys.append(row["item"])
        of.pictures.append(row["picture"])
        of.truths.append(row.get("truth"))
        of.rows.append(tuple(dict.fromkeys(row.get("rows") or (row["task"],))))
    named = [(task, name) for task in tasks for name in listed if name[0] == task["name"]]
    found = {name: Tally(task, name[1], listed[name], keep) for task, name in named}
    for name, batch in split_up(answers):
        if name not in found:
            raise DataError(f"There are answers to {name[0]} ({name[1]}), of which no item is listed.")
        found[name].add(batch)
    for tally in found.values():
        tally.seen()
    return found


def split_up(rows: Answers) -> Iterator[tuple[tuple[str, str], pa.RecordBatch]]:
    """Yield the rows of each task and split."""
    for batch in rows.to_batches(max_chunksize=BATCH) if isinstance(rows, pa.Table) else rows:
        names = [batch[column].dictionary_encode() for column in ("task", "split")]
        for codes, chosen in grouped(*(name.indices.to_numpy() for name in names)):
            task, split = (name.dictionary[code].as_py() for name, code in zip(names, codes, strict=True))
            yield (task, split), batch.take(pa.array(chosen))
