"""RePOPE's labels for stored answers to POPE's questions about COCO: no question is asked again.

    lvlm-guard eval score runs/first --repope RePOPE     # a copy of github.com/YanNeu/RePOPE, or "fetch"

Its repository states no licence, so none of it is kept here: the files are the user's own, or fetched at the pinned
commit when asked for, and known by their digests. Rows "repope_adversarial" stand beside "pope_adversarial" of the same
answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.yes_no import SPLITS, Asked, labels
from lvlm_guard.evals.spec.jsonl import content
from lvlm_guard.evals.tasks.benchmark import copied, published
from lvlm_guard.evals.tasks.pope.questions import identify, read_questions

FETCH = "fetch"
"""In place of a folder: fetch the files."""

FILES = {Path(path).stem.rpartition("_")[2]: file for path, file in published("repope").items()}
"""Split of POPE -> RePOPE's labels of it."""

Batches = Iterable[pa.RecordBatch]


def repope_labels(folder: str | Path, splits: Sequence[str] = SPLITS) -> dict[str, dict[int, Asked]]:
    """Return RePOPE's labels, by split and question id.

    `folder` is a copy of the repository or of its folder "annotations"; "fetch" fetches the files. Raises `DataError`
    where a file can't be had, or is not RePOPE's at the pinned commit.
    """
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
        found[split] = {
            q.question_id: Asked(split, q.question_id, q.image, q.text, q.label) for q in read_questions(path)
        }
    return found


class Rescored(NamedTuple):
    """A run, with the task "repope" after its own, and a `note` on what was left out."""

    tasks: list[dict[str, Any]]
    items: list[Mapping[str, Any]]
    answers: Batches
    note: str


def rescored(
    folder: str | Path, tasks: Sequence[Mapping[str, Any]], items: Iterable[Mapping[str, Any]], answers: Batches
) -> Rescored:
    """Return a run with the task "repope": the answers to POPE's questions about COCO, under the labels in `folder`.

    `tasks`, `items`, `answers` are as `stats.score.score_answers` takes them. Raises `DataError` where there are no
    such answers, they do not fit RePOPE's questions, or the labels can't be had.
    """
    listed = list(items)
    rows = [
        (row, Asked(kind.removeprefix("pope_"), int(number), str(row["picture"]), str(row["question"])))
        for row in listed
        if row["split"] == "test" and (tags := row.get("tags") or {}).get("data_set") == "coco"
        for kind, number in tags.get("ids", {}).items()
        if kind.removeprefix("pope_") in SPLITS
    ]
    if not rows:
        raise DataError(
            "RePOPE labels POPE's questions about COCO (random, popular, adversarial), and none of them was asked here."
        )
    splits = [split for split in SPLITS if any(one.split == split for _, one in rows)]
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
    return Rescored([*map(dict, tasks), asked], [*listed, *made.values(), *held], _Copied(answers, copies), note)


@dataclass(frozen=True)
class _Copied:
    """Batches of answers, each followed by the copies of those that RePOPE labels; to be gone through repeatedly."""

    answers: Batches
    copies: Mapping[tuple[str, ...], Sequence[str]]

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self.answers:
            yield batch
            keys = zip(*(batch[name].to_pylist() for name in ("task", "split", "item")), strict=True)
            named = [(at, name) for at, key in enumerate(keys) for name in self.copies.get(key, ())]
            if named:
                copied = batch.take(pa.array([at for at, _ in named]))
                new = {"task": pa.array(["repope"] * len(named)), "item": pa.array([name for _, name in named])}
                columns = [new.get(name, copied[name]) for name in batch.schema.names]
                yield pa.record_batch(columns, schema=batch.schema)
