"""Answers of several decoders as one table with its items, checked: nothing twice, nothing missing, one label each.

Answers without labels are joined with their file of questions: by id, or by order where there is no id.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lvlm_guard.evals.decoders.decoder import Decoder
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.foreign.formats import Given
from lvlm_guard.evals.spec.answers import SCHEMA, Role
from lvlm_guard.evals.spec.items import YES_NO, EvalTask, Item, Kind
from lvlm_guard.evals.tasks.pope.questions import KINDS, Question, described

CHUNK = 2**16
LABELS = {"yes": "yes", "no": "no", "1": "yes", "0": "no", "true": "yes", "false": "no"}
KEPT = ("item", "picture", "decoder", "seed", "text", "score", "mass", "censored", "tokens", "ended", "cut_at")
OWN = pa.schema(
    [("file", pa.int32()), ("line", pa.int64()), ("after_cut", pa.bool_())]
    + [(name, pa.string()) for name in ("question", "label", "kinds")]
    + [SCHEMA.field(name) for name in KEPT]
)
"""What is kept of `formats.Given`."""


class Questions:
    """Files of questions; raises `DataError` where one is none of questions, or is RePOPE's."""

    def __init__(self, paths: Sequence[Path]) -> None:
        files = [described(path, len(paths)) for path in paths]
        self.asked = [(file.kind, q) for file in files for q in file.questions]
        self.files = ", ".join(dict.fromkeys(file.path.name for file in files))
        self.by_id: dict[str, list[tuple[str, Question]]] = {}
        for kind, question in self.asked:
            self.by_id.setdefault(str(question.question_id), []).append((kind, question))
        self.several = len(files) > 1
        self.notes = [
            f"{file.path.name} has the questions of POPE's published file for {file.published}."
            if file.published
            else f"{file.path.name} is none of POPE's published files: numbers compare with none of a paper."
            for file in files
        ]

    def join(self, name: str, given: Iterable[Given]) -> Iterator[Given]:
        """Yield the answers of a file with picture, label, kind and a key that is unique among the questions. Raises
        `DataError` (an answer is to no question, or to another one than its id says; or there are fewer answers without
        ids than questions)."""
        met: Counter[tuple[str, ...]] = Counter()
        for answer in given:
            who: tuple[str, ...] = (answer.decoder, str(answer.seed))
            if answer.asked:  # kinds may share an id and even a question: these come in the order of the files
                who = (*who, answer.asked, answer.question)
                near = self.by_id.get(answer.asked, [])
            else:
                near = self.asked[met[who] : met[who] + 1]
            fit = [(kind, question) for kind, question in near if _same(answer, question)]
            if not fit:
                raise DataError(self._stranger(name, answer, near))
            kind, question = fit[met[who] % len(fit)]
            met[who] += 1
            item = f"{kind}/{question.question_id}" if self.several else str(question.question_id)
            answer = answer._replace(picture=question.image, question=question.text, label=question.label)
            yield answer._replace(item=item, kinds=kind)
        short = next((count for who, count in met.items() if len(who) == 2 and count < len(self.asked)), None)
        if short:
            told = "Which ones are missing can't be known: ask all again, or write 'question_id' beside each."
            raise DataError(f"{name} has {short} answers to {len(self.asked)} questions, and no ids. {told}")

    def _stranger(self, name: str, answer: Given, near: Sequence[tuple[str, Question]]) -> str:
        at = f"Line {answer.line} of {name}" + (f", question_id {answer.asked}," if answer.asked else "")
        if not near:
            told = f"{at} answers none of the {len(self.asked)} questions of {self.files}"
            return f"{told}. Is that file RePOPE's, of another kind of POPE, or of a part of the questions?"
        _, question = near[0]
        theirs = ", ".join(map(repr, filter(None, (answer.picture, answer.question, answer.label))))
        ours = f"{question.image!r}, {question.text!r}, {question.label!r}"
        return f"{at} is of {theirs}; in {self.files} that question is {ours}: give their own with --questions."


def _same(answer: Given, question: Question) -> bool:
    """Whether what a file says of its question fits; prompts may say more, and some copies spell "imange"."""
    asked, text = (t.lower().replace("imange", "image").strip() for t in (answer.question, question.text))
    label = None if answer.label is None else LABELS.get(str(answer.label).strip().lower(), "")
    return (not asked or text in asked) and answer.picture in ("", question.image) and label in (None, question.label)


Place = Callable[[int], str]  # names where a row of the table stands


@dataclass(frozen=True)
class Gathered:
    """Answers that are scored as one task; their items' kinds are the result rows that they count in."""

    task: str
    kind: Kind
    answers: pa.Table  # of `spec.answers.SCHEMA`, items in the order of the first file, decoders in theirs
    items: pa.Table  # one row an item: item, picture, question, label (or JSON of another truth), kinds
    decoders: list[dict[str, Any]]  # in order, as `Decoder.describe()` has them; the baseline is the reference
    notes: list[str]  # what a reader of the scores has to know
    about: Mapping[str, Any]  # what the scorer has to know of the task

    def describe(self) -> dict[str, Any]:
        """Return the task as `EvalTask.describe()` has it."""
        kinds, pictures = (self.items[name].unique().to_pylist() for name in ("kinds", "picture"))
        rows = list(dict.fromkeys(row for those in kinds for row in self._rows(those)))
        told = EvalTask(self.task, self.kind, (), 0, about=self.about).describe()
        return told | {"n": len(self.items), "pictures": len(pictures), "rows": rows}

    def described_items(self) -> Iterator[dict[str, Any]]:
        """Yield the items as `items.jsonl` has them; tags say which of POPE's, by which RePOPE finds them."""
        for row in (row for batch in self.items.to_batches(CHUNK) for row in batch.to_pylist()):
            number = row["item"].rpartition("/")[2]  # "adversarial/12" is the twelfth
            rows = self._rows(row["kinds"])
            ids = {name: int(number) for name in rows if name.removeprefix("pope_") in KINDS and number.isdigit()}
            tags = {"data_set": "coco", "ids": ids} if ids else {}
            truth = row["label"] if self.kind in YES_NO else json.loads(row["label"])
            picture, question = row["picture"] or row["item"], row["question"]
            item = Item(row["item"], picture, question, (), truth=truth, rows=tuple(rows), tags=tags)
            yield {"task": self.task, "split": "test", "kind": self.kind, **item.describe()}

    def _rows(self, kinds: str) -> list[str]:
        return kinds.split(",") if kinds else [self.task]


def gather(
    task: str,
    files: Mapping[str, Iterable[Given]],
    baseline: str | None = None,
    *,
    kind: Kind = "pope",
    controls: Mapping[str, str] | None = None,
    notes: Iterable[str] = (),
    about: Mapping[str, Any] | None = None,
) -> Gathered:
    """Return the answers of files; a file's name is the decoder's where it names none, the first is the baseline.

    Answers without a `truth` have a label: yes or no. Of `controls` (decoder -> the other one that it is a control of)
    neither is a method's own. Raises `DataError` of a wrong label, an answer that stands twice or is missing, decoders
    that were asked different things, scores before and after a cut in one table, or an unknown baseline.
    """
    listed = list(files)
    batches = [batch for at, name in enumerate(listed) for batch in _batches(at, name, files[name])]
    table = pa.Table.from_batches(batches, OWN)
    table = table.append_column("row", pa.array(np.arange(len(table))))

    def place(row: int) -> str:
        return f"line {table['line'][row]} of {listed[table['file'][row].as_py()]}"

    first = _checked(table, place)
    decoders = _decoders(table["decoder"].unique().to_pylist(), baseline, controls or {})
    unscored = _check_scores(table, place)
    items, names = table["item"].take(first), pa.array([decoder["name"] for decoder in decoders])
    columns = {name: table[name] for name in KEPT}
    without = pc.is_in(table["decoder"], pa.array(list(unscored), pa.string()))
    columns["score"] = pc.if_else(without, None, table["score"])
    at = pc.index_in(table["decoder"], names)
    for name in ("role", "baseline"):
        columns[name] = pa.array([decoder[name] for decoder in decoders], pa.string()).take(at)
    for name, value in (dict.fromkeys(SCHEMA.names) | {"task": task, "split": "test"}).items():
        columns.setdefault(name, pa.repeat(pa.scalar(value, SCHEMA.field(name).type), len(table)))
    whole = pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)
    # decoders take turns within an item, in the order in which they were given
    keys = pa.table({"item": pc.index_in(table["item"], items), "decoder": at, "seed": table["seed"]})
    order = pc.sort_indices(keys, [(name, "ascending") for name in keys.column_names])
    asked = table.select(["item", "picture", "question", "label", "kinds"]).take(first)
    return Gathered(task, kind, whole.take(order), asked, decoders, [*notes, *unscored.values()], about or {})


def _batches(file: int, name: str, given: Iterable[Given]) -> Iterator[pa.RecordBatch]:
    given = iter(given)
    while chunk := list(islice(given, CHUNK)):
        known = [{"file": file, "decoder": a.decoder or name, "label": a.truth or _label(name, a)} for a in chunk]
        try:
            yield pa.RecordBatch.from_pylist([a._asdict() | k for a, k in zip(chunk, known, strict=True)], schema=OWN)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError) as error:
            at = f"Lines {chunk[0].line} to {chunk[-1].line} of {name}"
            raise DataError(f"{at} hold a name, number or list of lengths that is none: {error}.") from None


def _label(name: str, answer: Given) -> str:
    found = LABELS.get(str(answer.label).strip().lower())
    if found is None:
        has = "no label" if answer.label is None else f"the label {answer.label!r}"
        told = "it must be 'yes' or 'no'. Where a file has answers alone, give its questions with --questions FILE."
        raise DataError(f"Line {answer.line} of {name} has {has}: {told}")
    return found


def _decoders(names: list[str], baseline: str | None, controls: Mapping[str, str]) -> list[dict[str, Any]]:
    if baseline is not None and baseline not in names:
        raise DataError(f"No decoder is called {baseline!r}: there are {', '.join(names)}.")
    reference, own = baseline or names[0], {name: of for name, of in controls.items() if name in names}
    roles: dict[str, Role] = {name: "control" if name in {*own, *own.values()} else "method" for name in names}
    roles[reference] = "reference"
    beside: dict[str, str | None] = dict.fromkeys(names, reference)
    beside |= {of: name for name, of in own.items()} | {reference: None}
    return [
        Decoder(name, name, (), role=roles[name], baseline=beside[name], control_of=own.get(name)).describe()
        for name in names
    ]


def _checked(table: pa.Table, place: Place) -> pa.ChunkedArray:
    runs = table.group_by(["decoder", "seed", "item"]).aggregate([("row", "min"), ("row", "max")]).sort_by("row_min")
    for one in runs.filter(pc.not_equal(runs["row_min"], runs["row_max"])).slice(0, 1).to_pylist():
        both = f"in {place(one['row_min'])} and {place(one['row_max'])}"
        told = "Take one out, or say what tells them apart: 'seed', 'decoder', or 'category' for kinds of questions."
        raise DataError(f"{one['decoder']!r} answers {one['item']!r} twice, {both}: which one counts? {told}")
    items = table.group_by("item").aggregate([("row", "min")]).sort_by("row_min")
    of = pc.index_in(table["item"], items["item"])
    for field in ("label", "picture"):
        other = pc.not_equal(table[field], table[field].take(items["row_min"]).take(of))
        for b in table["row"].filter(other).slice(0, 1).to_pylist():
            a = items["row_min"][of[b].as_py()].as_py()
            one, two = (f"{table[field][row].as_py()!r} in {place(row)}" for row in (a, b))
            told = f"{table['item'][a].as_py()!r} has the {field} {one} and {two}"
            raise DataError(f"{told}: answers to different questions. Is a file RePOPE's, or of another POPE?")
    counts = runs.group_by(["decoder", "seed"]).aggregate([("item", "count"), ("row_min", "min")])
    counts = counts.sort_by("row_min_min")
    fewest = min(counts.to_pylist(), key=lambda run: int(run["item_count"]))
    if fewest["item_count"] < len(items):
        mine = pc.and_(pc.equal(runs["decoder"], fewest["decoder"]), pc.equal(runs["seed"], fewest["seed"]))
        lacking = items.filter(pc.invert(pc.is_in(items["item"], runs["item"].filter(mine))))
        told = f"{lacking['item'][0].as_py()!r}, answered in {place(lacking['row_min'][0].as_py())}"
        told = f"no answer to {len(lacking)} of {len(items)} questions; the first is {told}. Paired tests need the same"
        raise DataError(f"{fewest['decoder']!r} has {told} questions: ask the rest, or take them out for all.")
    return items["row_min"]


def _check_scores(table: pa.Table, place: Place) -> dict[str, str]:
    """Return notes: of the decoders that lack some scores by their names, and one on a cut; raises `DataError`."""
    cut, has = table["after_cut"], pc.is_valid(table["score"])
    before, after = (table["row"].filter(rows) for rows in (pc.and_(has, pc.invert(cut)), cut))
    if len(before) and len(after):
        both = f"{place(before[0].as_py())} has 'score', {place(after[0].as_py())} has 'score_cut'"
        told = "scores before and after a plausibility cut can't stand in one table. Score the files apart, or store"
        raise DataError(f"{both}: {told} that before the cut in all.")
    notes: dict[str, str] = {}
    if len(after):
        notes[""] = "Scores are those after a plausibility cut: AUROC compares with no table of scores before it."
    for name in table["decoder"].unique().to_pylist():
        mine = pc.equal(table["decoder"], name)
        lacking = table["row"].filter(pc.and_(mine, pc.invert(has)))
        if 0 < len(lacking) < pc.sum(mine).as_py():
            told = f"{name} has no score in {len(lacking)} rows, the first {place(lacking[0].as_py())}"
            notes[name] = f"{told}: its AUROC, matched accuracy and tilt are left out."
    return notes
