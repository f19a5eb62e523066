"""RePOPE's labels for stored answers to POPE's questions about COCO: no question is asked again.

    lvlm-guard eval score runs/first --repope RePOPE     # a copy of github.com/YanNeu/RePOPE, or "fetch"

Its repository states no licence, so none of it is kept here: the files are the user's own, or fetched at the pinned
commit when asked for, and known by their digests. Rows "repope_adversarial" stand beside "pope_adversarial" of the same
answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.pope import Answer
from lvlm_guard.evals.spec.jsonl import content
from lvlm_guard.evals.tasks.benchmark import copied, published
from lvlm_guard.evals.tasks.pope.questions import KINDS, Question, identify, read_questions

FETCH = "fetch"  # in place of a folder: fetch the files

FILES = {Path(path).stem.rpartition("_")[2]: file for path, file in published("repope").items()}
"""Split of POPE -> RePOPE's labels of it."""

Batches = Iterable[pa.RecordBatch]


def repope_labels(folder: str | Path, splits: Sequence[str] = KINDS) -> dict[str, dict[int, Question]]:
    """Return RePOPE's labels, by split and question id. `folder` is a copy of the repository or of its folder
    "annotations"; "fetch" fetches the files. Raises `DataError` where a file can't be had, or is not RePOPE's at the
    pinned commit."""
    found = {}
    for split in splits:
        wanted = FILES[split]
        path = copied("repope", wanted.name, "" if str(folder) == FETCH else folder, "--repope")
        digest = hashlib.sha256(content(path).replace(b"\r\n", b"\n")).hexdigest()
        if pope := identify(path):
            raise DataError(f"{path} is POPE's file ({pope}), not RePOPE's: its labels are those that RePOPE corrects.")
        if digest != wanted.sha256:
            told = f"(SHA-256 {digest[:16]}, should be {wanted.sha256[:16]}): scores would compare with none of a paper"
            raise DataError(f"{path} is not RePOPE's file at the commit bcf22e5 {told}.")
        found[split] = {question.question_id: question for question in read_questions(path)}
    return found


def labels(asked: Iterable[Question], repope: Mapping[str, Mapping[int, Question]]) -> list[Answer | None]:
    """Return RePOPE's label of each question, in their order; None where RePOPE dropped it as ambiguous.

    `asked` are the questions whose answers are stored, their `split` a kind of POPE's ("random"), one in `repope`
    (split -> question id -> as RePOPE has it). Raises `DataError` (a picture or text is not the one that RePOPE labels
    ("imange" is "image"), a split is unknown, a question is there twice, or RePOPE labels one that was not asked).
    """
    found: dict[tuple[str, int], Answer | None] = {}
    for one in asked:
        what = f"Question {one.question_id} of POPE {one.split}"
        if one.split not in repope:
            raise DataError(f"RePOPE has no split {one.split!r}: it labels COCO's {', '.join(repope)}.")
        if (one.split, one.question_id) in found:
            raise DataError(f"{what} was asked twice: which answer counts?")
        label = repope[one.split].get(one.question_id)
        theirs = label or one
        wanted, text = (said.text.replace("imange", "image").strip() for said in (theirs, one))
        # a stored prompt may go on after the question
        if one.image != theirs.image or wanted not in text:
            there = f"{theirs.text!r} of {theirs.image} in RePOPE"
            raise DataError(f"{what} is {one.text!r} of {one.image} here, and {there}: these are other questions.")
        found[one.split, one.question_id] = label and label.label
    if left := {(split, number) for split, of_split in repope.items() for number in of_split} - found.keys():
        split, number = min(left)
        told = f"{len(left)} questions of RePOPE were not answered, the first of them {number} of {split}"
        raise DataError(f"{told}: its scores are of all. Ask POPE's three files for COCO whole (no --limit).")
    return list(found.values())


def rescored(
    folder: str | Path, tasks: Sequence[Mapping[str, Any]], items: Iterable[Mapping[str, Any]], answers: Batches
) -> tuple[list[dict[str, Any]], list[Mapping[str, Any]], Batches, str]:
    """Return a run with the task "repope": the answers to POPE's questions about COCO, under the labels in `folder`.

    `tasks`, `items`, `answers` are as `stats.score.score_answers` takes them, and so they are returned, with a note on
    what was left out. Raises `DataError` where there are no such answers, they do not fit RePOPE's questions, or the
    labels can't be had.
    """
    listed = list(items)
    rows = [
        (row, Question(int(n), str(row["picture"]), str(row["question"]), row["truth"], kind.removeprefix("pope_")))
        for row in listed
        if row["split"] == "test" and (tags := row.get("tags") or {}).get("data_set") == "coco"
        for kind, n in tags.get("ids", {}).items()
        if kind.removeprefix("pope_") in KINDS
    ]
    if not rows:
        asked_here = f"POPE's questions about COCO ({', '.join(KINDS)}), and none of them was asked here"
        raise DataError(f"RePOPE labels {asked_here}.")
    splits = [split for split in KINDS if any(one.split == split for _, one in rows)]
    told = labels((one for _, one in rows), repope_labels(folder, splits))
    of = next(task for task in tasks if task["name"] == rows[0][0]["task"])
    named = {"task": "repope", "kind": "repope"}
    made: dict[tuple[str, ...], dict[str, Any]] = {}
    copies: dict[tuple[str, ...], list[str]] = {}
    for (row, one), label in zip(rows, told, strict=True):
        if label is not None:
            # a question that kinds share is one item here too, unless they label it differently
            key, item = (row["task"], "test", row["item"]), f"{row['item']}/{label}"
            if (*key, label) not in made:
                made[(*key, label)] = {**row, **named, "item": item, "truth": label, "rows": []}
                copies.setdefault(key, []).append(item)
            made[(*key, label)]["rows"].append(f"repope_{one.split}")
    # thresholds and controls are chosen on the same questions of no test, whose labels RePOPE does not have
    held = [{**row, **named} for row in listed if row["task"] == of["name"] and row["split"] != "test"]
    copies |= {(of["name"], row["split"], row["item"]): [row["item"]] for row in held}
    pictures = {one["picture"] for one in made.values()}
    about = {"source": "RePOPE (arXiv:2504.15707), labels of stored answers", "answers": of["name"]}
    asked = {**of, "name": "repope", "kind": "repope", "n": len(made), "pictures": len(pictures), "about": about}
    asked["rows"] = [f"repope_{split}" for split in splits]
    dropped = f"RePOPE dropped {told.count(None)} of the {len(told)} questions as ambiguous"
    note = f"{dropped}: they count under POPE's labels alone. Fewer than half of RePOPE's labels are yes."
    return [*map(dict, tasks), asked], [*listed, *made.values(), *held], _copied(answers, copies), note


def _copied(answers: Batches, copies: Mapping[tuple[str, ...], Sequence[str]]) -> Iterator[pa.RecordBatch]:
    """Yield batches of answers, each followed by the copies of those that RePOPE labels."""
    for batch in answers:
        yield batch
        keys = zip(*(batch[name].to_pylist() for name in ("task", "split", "item")), strict=True)
        named = [(at, name) for at, key in enumerate(keys) for name in copies.get(key, ())]
        if named:
            rows = batch.take(pa.array([at for at, _ in named]))
            new = {"task": pa.array(["repope"] * len(named)), "item": pa.array([name for _, name in named])}
            columns = [new.get(name, rows[name]) for name in batch.schema.names]
            yield pa.record_batch(columns, schema=batch.schema)
