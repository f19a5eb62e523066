"""From files of answers to results, as a run's folder has them: `lvlm-guard eval score FILE --task T`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.foreign import captions
from lvlm_guard.evals.foreign.tasks import TASKS, Data, Part
from lvlm_guard.evals.report.numbers import said
from lvlm_guard.evals.spec.items import EvalTask
from lvlm_guard.evals.stats.score import BATCH, score_answers
from lvlm_guard.evals.stats.validity import Allowed
from lvlm_guard.evals.tasks.pope.questions import KINDS
from lvlm_guard.evals.tasks.repope import rescored


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
) -> dict[str, Any]:
    """Score files of answers; returns what `stats.score.score_answers` does.

    Args:
        files: name -> file; the name is the decoder's where the file names none.
        task: one of `tasks.TASKS`.
        questions: files of questions, where answers have no labels, or captions are asked them.
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
    parts = list(TASKS[task](files, Data(questions, annotations, dialects, words, baseline)))
    tasks: list[Any] = [_described(part) for part in parts]
    items: Iterable[Mapping[str, Any]] = chain.from_iterable(map(_items, parts))
    batches: Iterable[pa.RecordBatch] = [batch for part in parts for batch in part.found.answers.to_batches(BATCH)]
    notes = [note for part in parts for note in (*part.notes, *part.found.notes)]
    if repope is not None:
        tasks, items, batches, note = rescored(repope, tasks, items, batches)
        notes.append(note)
    told = {
        decoder["name"]: decoder for part in reversed(parts) for decoder in part.found.decoders
    }  # the first is whole
    names = dict.fromkeys(decoder["name"] for part in parts for decoder in part.found.decoders)
    found = score_answers(batches, items, tasks, [told[name] for name in names], allowed=allowed)
    found["warnings"] = list(dict.fromkeys([*notes, *_at_equal_length(found), *found["warnings"]]))
    return found | {"settings": {"model": f"{len(files)} file{'s' if len(files) > 1 else ''} of answers"}}


def _at_equal_length(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what captions differ by from the baseline's, both cut to the shorter of the two."""
    known = {(row["decoder"], row["baseline"], row["metric"]): row for row in found["rows"] if row["task"] == "chair"}
    for ours, theirs in [(d["name"], d["baseline"]) for d in found["decoders"] if captions.CUT in str(d["baseline"])]:
        told = [row for metric in ("chair_s", "chair_i", "object_recall") if (row := known.get((ours, theirs, metric)))]
        if told:
            yield f"At equal length, {ours.partition(f' {captions.CUT}')[0]} less {found['reference']}: " + "; ".join(
                f"{row['metric']} {said(row)}" for row in told
            )


def _described(part: Part) -> dict[str, Any]:
    """Return the task as `EvalTask.describe()` has it."""
    rows = [row for kinds in part.found.items["kinds"].unique().to_pylist() for row in part.rows(kinds) or [part.name]]
    n, pictures = len(part.found.items), len(part.found.items["picture"].unique())
    told = EvalTask(part.name, part.kind, (), 0, about=part.about).describe()
    return told | {"n": n, "pictures": pictures, "rows": list(dict.fromkeys(rows))}


def _items(part: Part) -> Iterator[dict[str, Any]]:
    """Yield the items as `items.jsonl` has them."""
    rows = {kinds: part.rows(kinds) or [part.name] for kinds in part.found.items["kinds"].unique().to_pylist()}
    columns = [part.found.items[name].to_pylist() for name in ("item", "picture", "question", "kinds")]
    for item, picture, question, kinds, truth in zip(*columns, part.truths, strict=True):
        named = {"task": part.name, "split": "test", "kind": part.kind, "item": item, "picture": picture or item}
        asked = {"prompt": question, "question": question, "truth": truth, "rows": rows[kinds]}
        yield {**named, **asked, "tags": _tags(item, kinds)}


def _tags(item: str, kinds: str) -> dict[str, Any]:
    """Return which questions of POPE's files an item is, by which RePOPE finds it: "adversarial/12" is the twelfth."""
    number = item.rpartition("/")[2]
    ids = {f"pope_{kind}": int(number) for kind in kinds.split(",") if kind in KINDS and number.isdigit()}
    return {"data_set": "coco", "ids": ids} if ids else {}
