"""From files of answers to results, as a run's folder has them: `lvlm-guard eval score FILE --task T`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from lvlm_guard.evals.decoders.decoder import Decoder
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.foreign import captions
from lvlm_guard.evals.foreign.formats import Given, read
from lvlm_guard.evals.foreign.gathered import Gathered, gather
from lvlm_guard.evals.foreign.questions import Questions
from lvlm_guard.evals.metrics.objects import coco_words
from lvlm_guard.evals.spec.items import EvalTask, Kind
from lvlm_guard.evals.stats.score import BATCH, Allowed, score_answers
from lvlm_guard.evals.tasks.pope.questions import KINDS
from lvlm_guard.evals.tasks.repope import rescored

Results = dict[str, Any]
DIALECTS = {"default": "ours"}


@dataclass(frozen=True)
class Data:
    """What files are scored by; see `score_files`."""

    questions: Sequence[Path] = ()
    annotations: Path | None = None
    dialects: Sequence[str] = ()
    words: Sequence[int] = ()
    baseline: str | None = None


@dataclass
class Whole:
    """All that is scored together: tables of answers, items, tasks, decoders and notes."""

    answers: list[pa.Table] = field(default_factory=list)
    items: list[Iterable[dict[str, Any]]] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    decoders: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def score_files(
    files: Mapping[str, Path],
    task: str,
    *,
    questions: Sequence[Path] = (),
    annotations: Path | None = None,
    dialects: Sequence[str] = (),
    words: Sequence[int] = (),
    baseline: str | None = None,
    allowed: Allowed | None = None,
    repope: str | Path | None = None,
) -> Results:
    """Score files of answers.

    Args:
        files: name -> file; the name is the decoder's where the file names none.
        task: one of `TASKS`.
        questions: files of questions, where answers have no labels.
        annotations: what is in the pictures of captions.
        dialects: how captions are read; () for ours.
        words: lengths that captions are cut to, beside whole.
        baseline: the decoder that the others are compared with; None: the first.
        allowed: shares of answers that may be amiss.
        repope: RePOPE's folder, or "fetch": answers to POPE's questions about COCO are scored by its labels too.

    Raises:
        DataError: there is no such task, or the files can't be scored; the message names file and line.
    """
    if task not in TASKS:
        near = get_close_matches(task, TASKS, n=1)
        raise DataError(
            f"--task {task!r} is none of files of answers{f'; did you mean {near[0]!r}?' if near else '.'} There are "
            f"{', '.join(TASKS)}."
        )
    whole = TASKS[task](files, Data(questions, annotations, dialects, words, baseline))
    batches: Iterable[pa.RecordBatch] = [batch for table in whole.answers for batch in table.to_batches(BATCH)]
    items: Iterable[Mapping[str, Any]] = chain.from_iterable(whole.items)
    if repope is not None:
        whole.tasks, items, batches, note = rescored(repope, whole.tasks, items, batches)
        whole.notes.append(note)
    found = score_answers(batches, items, whole.tasks, whole.decoders, allowed=allowed)
    found["warnings"] = [*whole.notes, *found["warnings"]]
    return found


def _yes_no(files: Mapping[str, Path], data: Data) -> Whole:
    notes = []
    given: dict[str, Iterator[Given]] = {name: read(path) for name, path in files.items()}
    if data.questions:
        joined = Questions(data.questions)
        notes += joined.notes
        given = {name: joined.join(name, answers) for name, answers in given.items()}
    else:
        given = {name: _told_apart(answers) for name, answers in given.items()}
    found = gather("yes_no", given, data.baseline)
    if not any(found.items["picture"].to_pylist()):
        notes.append(
            "The files name no pictures, so each question counts as a picture of its own, and intervals are too "
            "narrow. Give the questions with --questions."
        )
    whole = Whole(notes=notes)
    _add(whole, found, "yes_no", "pope", found.items["label"].to_pylist())
    return whole


def _told_apart(answers: Iterable[Given]) -> Iterator[Given]:
    """Yield answers with a key for each: their place where they have no id, their kind too where they name one."""
    for place, answer in enumerate(answers):
        key = answer.item or str(place)
        yield answer._replace(item=key if "," in answer.kinds or not answer.kinds else f"{answer.kinds}/{key}")


def _chair(files: Mapping[str, Path], data: Data) -> Whole:
    read_ = {name: captions.by_picture(name, read(path)) for name, path in files.items()}
    names = list(dict.fromkeys(caption.decoder for those in read_.values() for caption in those))
    baseline = data.baseline or names[0]
    dialects = [DIALECTS.get(name, name) for name in data.dialects] or ["ours"]
    for dialect in dialects:
        coco_words(dialect)  # an unknown one, or one without its data, before anything is read
    objects = captions.objects_of(data.annotations, [caption for those in read_.values() for caption in those])
    short, controls = captions.cut_as_short(read_, baseline)
    whole = Whole()
    for words in (None, *data.words):
        name = "chair" if words is None else f"chair_{words}_words"
        parts: dict[str, Iterable[Given]] = {
            file: [c._replace(text=captions.prefix(c.text, words), cut_at=None) for c in those] if words else those
            for file, those in read_.items()
        }
        if words is None and short:
            parts["the control of length"] = short
        found = gather(name, parts, baseline, controls=controls, labelled=False)
        truths = [objects[item] for item in found.items["item"].to_pylist()]
        _add(whole, found, name, "chair", truths, controls=controls, about={"dialects": dialects})
    return whole


TASKS = {"yes-no": _yes_no, "chair": _chair}
"""Name of `--task` -> what reads its files."""


def _add(
    whole: Whole,
    found: Gathered,
    task: str,
    kind: Kind,
    truths: Iterable[Any],
    *,
    controls: Mapping[str, str] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Add what was gathered as one task."""
    rows = {kinds: _rows(task, kinds) for kinds in found.items["kinds"].unique().to_pylist()}
    whole.tasks.append(
        {
            **EvalTask(task, kind, (), 0, about=about or {}).describe(),
            "n": len(found.items),
            "pictures": len(found.items["picture"].unique()),
            "rows": list(dict.fromkeys(row for names in rows.values() for row in names)),
        }
    )
    whole.answers.append(found.answers)
    whole.items.append(_items(found, task, kind, rows, truths))
    whole.notes += [note for note in found.notes if note not in whole.notes]
    for name, role in found.roles.items():
        if all(decoder["name"] != name for decoder in whole.decoders):
            of = (controls or {}).get(name)
            made = Decoder(name, name, None, role=role, baseline=found.baselines[name], control_of=of)
            whole.decoders.append(made.describe())


def _items(
    found: Gathered, task: str, kind: Kind, rows: Mapping[str, list[str]], truths: Iterable[Any]
) -> Iterator[dict[str, Any]]:
    """Yield the items as `items.jsonl` has them."""
    columns = [found.items[name].to_pylist() for name in ("item", "picture", "question", "kinds")]
    for item, picture, question, kinds, truth in zip(*columns, truths, strict=True):
        named = {"task": task, "split": "test", "kind": kind, "item": item, "picture": picture or item}
        yield {
            **named,
            "prompt": question,
            "question": question,
            "truth": truth,
            "rows": rows[kinds],
            "tags": _tags(item, kinds),
        }


def _tags(item: str, kinds: str) -> dict[str, Any]:
    """Return which questions of POPE's files an item is, by which RePOPE finds it: "adversarial/12" is the twelfth."""
    number = item.rpartition("/")[2]
    ids = {f"pope_{kind}": int(number) for kind in kinds.split(",") if kind in KINDS and number.isdigit()}
    return {"data_set": "coco", "ids": ids} if ids else {}


def _rows(task: str, kinds: str) -> list[str]:
    """Return the result rows of the kinds of a question, joined by commas; POPE's have POPE's names."""
    return [f"{'pope' if kind in KINDS else task}_{kind}" for kind in kinds.split(",") if kind] or [task]
