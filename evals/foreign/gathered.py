"""Answers of several decoders as one table with its items, checked: nothing twice, nothing missing, one label each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lvlm_guard.evals.decoders.decoder import Decoder
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.foreign.formats import Given
from lvlm_guard.evals.spec.answers import SCHEMA, Role

CHUNK = 2**16
LABELS = {"yes": "yes", "no": "no", "1": "yes", "0": "no", "true": "yes", "false": "no"}
KEPT = ("item", "picture", "decoder", "seed", "text", "score", "mass", "censored", "tokens", "ended", "cut_at")
OWN = pa.schema(
    [("file", pa.int32()), ("line", pa.int64()), ("after_cut", pa.bool_())]
    + [(name, pa.string()) for name in ("question", "label", "kinds")]
    + [SCHEMA.field(name) for name in KEPT]
)
"""What is kept of `formats.Given`."""


@dataclass(frozen=True)
class Gathered:
    """Answers to be scored."""

    answers: pa.Table  # of `spec.answers.SCHEMA`, items in the order of the first file, decoders in theirs
    items: pa.Table  # one row an item: item, picture, question, label, kinds
    decoders: list[dict[str, Any]]  # in order, as `Decoder.describe()` has them; the baseline is the reference
    notes: list[str]  # what a reader of the scores has to know


def gather(
    task: str,
    files: Mapping[str, Iterable[Given]],
    baseline: str | None = None,
    *,
    controls: Mapping[str, str] | None = None,
    labelled: bool = True,
) -> Gathered:
    """Return the answers of files; a file's name is the decoder's where it names none, the first is the baseline.

    Of `controls` (decoder -> the other one that it is a control of) neither is a method's own.

    Raises:
        DataError: a label is none; an answer stands twice or is missing; decoders were asked different things; a table
            would mix scores before and after a cut; no decoder is called as the baseline.
    """
    table = pa.Table.from_batches(
        [batch for at, (name, given) in enumerate(files.items()) for batch in _batches(at, name, given, labelled)], OWN
    )
    answers = _Answers(table, list(files))
    answers.check()
    names = answers.decoders
    if baseline is not None and baseline not in names:
        raise DataError(f"No decoder is called {baseline!r}: there are {', '.join(names)}.")
    reference, own = baseline or names[0], {name: of for name, of in (controls or {}).items() if name in names}
    roles: dict[str, Role] = {name: "control" if name in {*own, *own.values()} else "method" for name in names}
    roles[reference] = "reference"
    beside: dict[str, str | None] = dict.fromkeys(names, reference)
    beside |= {of: name for name, of in own.items()} | {reference: None}
    decoders = [
        Decoder(name, name, None, role=roles[name], baseline=beside[name], control_of=own.get(name)).describe()
        for name in names
    ]
    score, notes = answers.scores()
    columns = {name: table[name] for name in KEPT}
    for name in ("role", "baseline"):
        columns[name] = pa.array([d[name] for d in decoders], pa.string()).take(pa.array(answers.decoder))
    columns["score"] = pa.array(score, pa.float32(), mask=np.isnan(score))
    for name, value in (dict.fromkeys(SCHEMA.names) | {"task": task, "split": "test"}).items():
        columns.setdefault(name, pa.repeat(pa.scalar(value, SCHEMA.field(name).type), len(table)))
    whole = pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)
    items = table.select(["item", "picture", "question", "label", "kinds"]).take(pa.array(answers.first))
    # decoders take turns within an item, in the order in which they were given
    order = np.lexsort((answers.seed, answers.decoder, answers.item))
    return Gathered(whole.take(pa.array(order)), items, decoders, notes)


def _batches(file: int, name: str, given: Iterable[Given], labelled: bool) -> Iterator[pa.RecordBatch]:
    given = iter(given)
    while chunk := list(islice(given, CHUNK)):
        columns: dict[str, Any] = dict(zip(Given._fields, zip(*chunk, strict=True), strict=True))
        columns["file"] = [file] * len(chunk)
        columns["decoder"] = [decoder or name for decoder in columns["decoder"]]
        columns["label"] = [_label(name, answer) if labelled else "" for answer in chunk]
        try:
            yield pa.record_batch([pa.array(columns[field.name], field.type) for field in OWN], schema=OWN)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError) as error:
            at = f"Lines {chunk[0].line} to {chunk[-1].line} of {name}"
            raise DataError(f"{at} hold a name, number or list of lengths that is none: {error}.") from None


def _label(name: str, answer: Given) -> str:
    found = LABELS.get(str(answer.label).strip().lower())
    if found is None:
        has = "no label" if answer.label is None else f"the label {answer.label!r}"
        raise DataError(
            f"Line {answer.line} of {name} has {has}: it must be 'yes' or 'no'. Where a file has answers alone, give "
            "its questions with --questions FILE."
        )
    return found


def _codes(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    """Return a column's values in the order in which they first stand, and the place of each row's among them."""
    coded = column.dictionary_encode().unify_dictionaries().combine_chunks()
    coded = coded.chunk(0) if isinstance(coded, pa.ChunkedArray) else coded
    return coded.dictionary.to_pylist(), coded.indices.to_numpy().astype(np.int64)


class _Answers:
    """Which item and decoder each row is of, and what can't be scored of them."""

    def __init__(self, table: pa.Table, files: list[str]) -> None:
        self.table, self.files = table, files
        self.items, self.item = _codes(table["item"])
        self.decoders, self.decoder = _codes(table["decoder"])
        self.seed = table["seed"].to_numpy()
        self.first = np.full(len(self.items), len(table))
        np.minimum.at(self.first, self.item, np.arange(len(table)))

    def place(self, row: Any) -> str:
        """Name where a row stands."""
        return f"line {self.table['line'][int(row)]} of {self.files[self.table['file'][int(row)].as_py()]}"

    def check(self) -> None:
        """Raise `DataError` where an answer stands twice or is missing, or a question has two labels or pictures."""
        _, run = np.unique(np.stack([self.decoder, self.seed]), axis=1, return_inverse=True)
        order = np.lexsort((run, self.item))
        twice = np.flatnonzero((np.diff(self.item[order]) == 0) & (np.diff(run[order]) == 0))
        if len(twice):
            a, b = order[twice[0]], order[twice[0] + 1]
            raise DataError(
                f"{self.decoders[self.decoder[a]]!r} answers {self.items[self.item[a]]!r} twice, in {self.place(a)} "
                f"and {self.place(b)}: which one counts? Take one out, or say what tells them apart: 'seed', "
                "'decoder', or 'category' for kinds of questions."
            )
        for field in ("label", "picture"):
            values = _codes(self.table[field])[1]
            for b in np.flatnonzero(values != values[self.first[self.item]])[:1]:
                a = self.first[self.item[b]]
                one, other = (f"{self.table[field][int(row)].as_py()!r} in {self.place(row)}" for row in (a, b))
                raise DataError(
                    f"{self.items[self.item[a]]!r} has the {field} {one} and {other}: answers to different questions. "
                    "Is one of the files RePOPE's, or of another kind of POPE?"
                )
        counts = np.bincount(run)
        if counts.min() < len(self.items):
            mine = np.flatnonzero(run == counts.argmin())
            lacking = np.setdiff1d(np.arange(len(self.items)), self.item[mine])
            raise DataError(
                f"{self.decoders[self.decoder[mine[0]]]!r} has no answer to {len(lacking)} of {len(self.items)} "
                f"questions; the first is {self.items[lacking[0]]!r}, answered in "
                f"{self.place(self.first[lacking[0]])}. Paired tests need the same questions: ask the rest, or take "
                "them out for all."
            )

    def scores(self) -> tuple[NDArray[np.float32], list[str]]:
        """Return scores, NaN where there is none, and notes; a decoder has them everywhere, or nowhere."""
        score = self.table["score"].to_numpy().astype(np.float32)
        has, notes = ~np.isnan(score), []
        cut = self.table["after_cut"].to_numpy().astype(bool)
        if cut.any() and (has & ~cut).any():
            before, after = (self.place(np.flatnonzero(those)[0]) for those in (has & ~cut, cut))
            raise DataError(
                f"{before} has 'score', {after} has 'score_cut': scores before and after a plausibility cut can't "
                "stand in one table. Score the files apart, or store that before the cut in all."
            )
        if cut.any():
            notes.append("Scores are those after a plausibility cut: AUROC compares with no table of scores before it.")
        for at, name in enumerate(self.decoders):
            lacking = np.flatnonzero((self.decoder == at) & ~has)
            if 0 < len(lacking) < (self.decoder == at).sum():
                notes.append(
                    f"{name} has no score in {len(lacking)} rows, the first {self.place(lacking[0])}: its AUROC, "
                    "matched accuracy and tilt are left out."
                )
                score[self.decoder == at] = np.nan
        return score, notes
