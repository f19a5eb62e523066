"""A run on disk: what was asked, what was answered, what it scored. Read lazily; needs pyarrow alone.

run = read_run("runs/first")
run.answers(task="world_pope", decoder=["greedy", "agla"])  # a pyarrow table, those rows alone
export_answers(run, "agla", "agla.tsv")                     # for VLMEvalKit
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.dataset as ds

from lvlm_guard.errors import did_you_mean
from lvlm_guard.evals.errors import DataError, VoidRunError
from lvlm_guard.evals.report.layout import Results
from lvlm_guard.evals.spec import jsonl

ASKED, ITEMS, ANSWERS, RESULTS = "asked.json", "items.jsonl", "answers.parquet", "results.json"
EVIDENCE, INDEX, PICTURES = "evidence", "index.json", ("picture", "map", "local")
NEEDED: dict[str, dict[str, type]] = {
    ASKED: {"settings": dict, "tasks": list},
    RESULTS: {"rows": list, "verdicts": list, "void": list, "decoders": list, "tasks": list},
}
"""Fields of a file that must be there."""

Status = Literal["complete", "void", "unscored", "stopped"]
Item = dict[str, Any]
Said = dict[str, list[dict[str, Any]]]  # decoder -> its answers to an item, one a seed


@dataclass(frozen=True)
class Run:
    folder: Path
    asked: dict[str, Any]  # what `asked.json` holds
    scored: dict[str, Any] | None  # what `results.json` holds; None before it is scored

    @property
    def status(self) -> Status:
        """Return how far it is: "stopped" has not all its answers, "unscored" no results, "void" no scores."""
        if self.scored is not None:
            return "void" if self.scored["void"] else "complete"
        return "unscored" if (self.folder / ANSWERS).exists() else "stopped"

    @cached_property
    def results(self) -> Results:
        """The results, looked up by columns; raises `DataError` with the command that makes them."""
        if self.scored is None:
            raise DataError(self.todo)
        return Results(self.scored)

    @property
    def todo(self) -> str:
        """What a run that is not whole needs, in a sentence."""
        if self.status == "stopped":
            told = f"{self.folder} holds a run that has not finished"
            return f"{told}: give its command again, it goes on from where it stopped."
        return f"{self.folder} has answers and no scores: `lvlm-guard eval score {self.folder}` makes them."

    def decoder(self, name: str) -> dict[str, Any]:
        """Return a decoder as it was asked; raises `DataError` where the run has none of that name."""
        known: dict[str, dict[str, Any]] = {decoder["name"]: decoder for decoder in self.asked["decoders"]}
        if name not in known:
            near = did_you_mean(name, list(known))
            raise DataError(f"{self.folder} has no decoder {name!r}. {near}It has: {', '.join(known)}.")
        return known[name]

    @cached_property
    def items(self) -> dict[str, dict[str, Item]]:
        """What was asked and is reported: task -> key -> item, in order; raises `DataError` where it was changed."""
        found: dict[str, dict[str, Item]] = {name: {} for name in self._splits}
        path, needed = self.folder / ITEMS, ("task", "split", "kind", "item", "picture", "truth")
        for _, row in jsonl.read(path, needed, ("task", "split", "item")):
            if self._splits.get(row["task"]) == row["split"]:
                found[row["task"]][row["item"]] = row
        for task in self.asked["tasks"]:
            if len(found[task["name"]]) != task["n"]:
                told = f"{len(found[task['name']])} of the {task['n']} items of {task['name']}"
                raise DataError(f"{path} holds {told}: it was changed. Give the run's command again.")
        return found

    @property
    def _splits(self) -> dict[str, str]:
        return {task["name"]: task["split"] for task in self.asked["tasks"]}

    def answers(self, columns: Sequence[str] | None = None, **where: Any) -> pa.Table:
        """Return rows of the table of answers: those alone whose columns have a value, or one of several."""
        return self._scanned(columns, where).to_table()

    def by_item(
        self, task: str, columns: Sequence[str] = ("text", "ended", "failed"), keys: list[str] | None = None
    ) -> Iterator[tuple[Item, Said]]:
        """Yield each reported item of a task (those alone that `keys` name) with its answers, one at a time."""
        where = {"task": task, "split": self._splits[task]} | ({} if keys is None else {"item": keys})
        batches = self._scanned(("item", "decoder", *columns), where).to_batches()
        rows = (row for batch in batches for row in batch.to_pylist())
        for key, own in groupby(rows, lambda row: row["item"]):
            said: Said = {}
            for row in own:
                said.setdefault(row["decoder"], []).append(row)
            yield self.items[task][key], said

    def _scanned(self, columns: Sequence[str] | None, where: Mapping[str, Any]) -> ds.Scanner:
        path, wanted = self.folder / ANSWERS, ds.scalar(True)
        if not path.exists():
            raise DataError(self.todo)
        try:
            table = ds.dataset(path, format="parquet")
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} can't be read: {error}. Give the run's command again: it is made anew.") from error
        for name, value in where.items():
            values = pa.array(value if isinstance(value, list) else [value], table.schema.field(name).type)
            wanted = wanted & ds.field(name).isin(values)
        # one thread: rows stay in the order in which they were written
        return table.scanner(columns=columns and list(columns), filter=wanted, use_threads=False)


def read_run(folder: str | Path) -> Run:
    """Read a run, whatever its status; raises `DataError` with the file that is missing or can't be used."""
    folder = Path(folder)
    if not (folder / ASKED).exists():
        told = f"holds no run ({ASKED} is missing)" if folder.is_dir() else "is no folder"
        raise DataError(f"{folder} {told}: give the --out folder of a `lvlm-guard eval run`.")
    asked = _document(folder / ASKED)
    asked.setdefault("decoders", [])  # known once the model was loaded
    return Run(folder, asked, _document(folder / RESULTS) if (folder / RESULTS).exists() else None)


def finished(folder: str | Path | Run) -> Run:
    """Return a run whose scores can be read; raises `VoidRunError`, and `DataError` where it has no scores yet."""
    run = folder if isinstance(folder, Run) else read_run(folder)
    if run.status == "void":
        reasons = " ".join(run.results.data["void"])
        raise VoidRunError(f"{run.folder} is a void run, whose scores mean nothing: {reasons}")
    if run.status != "complete":
        raise DataError(run.todo)
    return run


def export_answers(run: Run, decoder: str, path: str | Path, seed: int = 0) -> Path:
    """Write a decoder's answers as a table for VLMEvalKit: index, question, answer, prediction, category.

    Tab-separated with a heading, as pandas and VLMEvalKit read it (a text with a tab or a line break is in quotes).
    `answer` is the right answer (names of objects joined by commas), `prediction` what the decoder said; `category`
    holds the result rows that the item counts in, joined by commas. Items without an answer, or whose request
    failed, are left out. Raises `DataError` of a decoder or seed that is not there, `RunError` of the disk.
    """
    seeds = run.decoder(decoder)["seeds"]
    answered = run.answers(("task", "split", "item", "text", "failed"), decoder=decoder, seed=seed).to_pylist()
    if not answered:
        raise DataError(f"{decoder} has {seeds} run(s) in {run.folder}, numbered from 0: none is {seed}.")
    said = {(r["task"], r["split"], r["item"]): r["text"] for r in answered if r["failed"] is None}
    table = io.StringIO()
    writer = csv.writer(table, delimiter="\t", lineterminator="\n")
    writer.writerow(["index", "question", "answer", "prediction", "category"])
    for index, item in enumerate(item for items in run.items.values() for item in items.values()):
        text = said.get((item["task"], item["split"], item["item"]))
        if text is not None:
            truth = item["truth"] if isinstance(item["truth"], list) else [item["truth"]]
            right = ", ".join(str(one) for one in truth if one is not None)
            category = ",".join(item.get("rows") or [item["task"]])
            writer.writerow([index, item.get("question") or item.get("prompt", ""), right, text, category])
    return jsonl.write_lines(Path(path), [table.getvalue().rstrip("\n")])


def _document(path: Path) -> dict[str, Any]:
    found = jsonl.document(path)
    if not isinstance(found, dict):
        raise DataError(f"{path} is no JSON object: was it written by `lvlm-guard eval`?")
    for name, kind in NEEDED[path.name].items():
        if not isinstance(found.get(name), kind):
            got = f"is {json.dumps(found[name])[:80]}" if name in found else "is missing"
            raise DataError(f"{path}: the field {name!r} {got}; was it written by `lvlm-guard eval`?")
    return found
