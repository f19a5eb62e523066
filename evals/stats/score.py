"""From a folder of answers to its results: `score` writes `results.json`, which every report is made from.

    results = score("runs/first")                                    # answers.parquet, items.jsonl, asked.json
    results = score_answers(table, items, tasks, decoders)           # the same, of data in hand

Nothing is asked and no model is loaded: a mended scorer scores again in seconds. What decides the scores has an
identity of its own, `identity()`. Needs neither torch nor transformers nor, but for its own tasks, lmms-eval.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lvlm_guard.evals.errors import DataError, disk_trouble
from lvlm_guard.evals.metrics.metric import Items
from lvlm_guard.evals.spec import jsonl
from lvlm_guard.evals.spec.answers import COSTS, SCHEMA
from lvlm_guard.evals.stats.bootstrap import DRAWS
from lvlm_guard.evals.stats.capability import capability
from lvlm_guard.evals.stats.costs import cost_rows, work_rows
from lvlm_guard.evals.stats.results import Measured, Row, right_of, with_holm
from lvlm_guard.evals.stats.tally import COUNTED, WORK, Tally, split_up
from lvlm_guard.evals.stats.validity import Allowed, validity
from lvlm_guard.evals.stats.verdict import best_control, verdicts

ANSWERS, COSTLY, ITEMS, ASKED, RESULTS = "answers.parquet", "costs.parquet", "items.jsonl", "asked.json", "results.json"
VERDICTS = "verdicts"  # folder of a judge's replies
BATCH = 2**15  # rows read at once
Described = Mapping[str, Any]
Tallies = dict[tuple[str, str], Tally]


@dataclass(frozen=True)
class Stored:
    """A parquet file as batches of rows, which are read anew each time they are gone through.

    Args:
        path: of the file.
        schema: whose columns are read.
    """

    path: Path
    schema: pa.Schema = SCHEMA

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows.

        Raises:
            DataError: the file can't be read, or lacks a column.
        """
        wanted = [name for name in self.schema.names if self.schema is COSTS or name in _READ]
        try:
            with pq.ParquetFile(self.path) as file:
                yield from file.iter_batches(BATCH, columns=wanted)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path} can't be read: {error}. Is it a table of answers, and whole?") from error


_READ = {*COUNTED, *WORK, "role", "baseline"}


def score(
    folder: str | Path,
    *,
    allowed: Allowed | None = None,
    repope: str | Path | None = None,
    dialects: Sequence[str] = (),
) -> dict[str, Any]:
    """Score the answers of a run, and write `results.json` beside them; returns what it holds.

    Args:
        folder: of the run.
        allowed: shares of answers that may be amiss.
        repope: RePOPE's folder, or "fetch": answers to POPE's questions about COCO are scored by its labels too.
        dialects: of CHAIR, beside ours and the stand-alone script's: "wordnet" is that of papers since OPERA.

    Raises:
        DataError: the folder holds no whole run, or an answer can't be scored.
        RunError: the disk is full.
    """
    folder = Path(folder)
    missing = [name for name in (ASKED, ITEMS, ANSWERS) if not (folder / name).exists()]
    if missing:
        raise DataError(
            f"{folder} holds no {missing[0]}: it is no run, or not all of it was asked. `lvlm-guard eval ask` makes "
            "one, and goes on with one."
        )
    asked = json.loads((folder / ASKED).read_text(encoding="utf-8"))
    tasks, answers = [_with_told(task, folder, dialects) for task in asked["tasks"]], Stored(folder / ANSWERS)
    items: Iterable[Mapping[str, Any]] = (row for _, row in jsonl.numbered(folder / ITEMS))
    relabelled = None
    if repope is not None:
        from lvlm_guard.evals.tasks.repope import rescored

        relabelled = rescored(repope, tasks, items, answers)
        tasks, items = relabelled.tasks, relabelled.items
    results = score_answers(
        relabelled.answers if relabelled else answers,
        items,
        tasks,
        asked["decoders"],
        costs=Stored(folder / COSTLY, COSTS) if (folder / COSTLY).exists() else (),
        allowed=allowed,
    )
    results["warnings"] += [relabelled.note] if relabelled else []
    results |= {"settings": asked["settings"], "asked": asked.get("identity"), "allowed": asdict(allowed or Allowed())}
    with disk_trouble(folder):
        part = folder / f"{RESULTS}.part"
        part.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(folder / RESULTS)
    return results


def _with_told(task: Described, folder: Path, dialects: Sequence[str]) -> Described:
    """Return a task with what only scoring knows: verdicts in the run's folder (MMHal-Bench), CHAIR's dialects."""
    about = dict(task.get("about") or {})
    if task["kind"] == "mmhal":
        about["verdicts"] = [str(path) for path in sorted((folder / VERDICTS).glob("*.json"))]
    if task["kind"] == "chair" and not task.get("vocabulary"):
        about["dialects"] = list(dict.fromkeys(("ours", "pattern", *dialects)))
    return {**task, "about": about}


def score_answers(
    answers: pa.Table | Iterable[pa.RecordBatch],
    items: Iterable[Mapping[str, Any]],
    tasks: Sequence[Described],
    decoders: Sequence[Described],
    *,
    costs: pa.Table | Iterable[pa.RecordBatch] = (),
    pairs: Sequence[tuple[str, str]] = (),
    allowed: Allowed | None = None,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Score answers: values with intervals, paired differences with intervals and tests, verdicts.

    Every decoder is compared with the reference (the decoder of that role, else the first), its baseline, its own
    controls, and the best control of its decoding, which calibration items choose.

    Args:
        answers: of `spec.answers.SCHEMA`, in any order. They are gone through twice; an iterator is held in memory.
        items: rows of `items.jsonl`: "task", "split", "item", "picture", "truth", "rows", "tags".
        tasks, decoders: as `EvalTask.describe()` and `Decoder.describe()` have them.
        costs: of `spec.answers.COSTS`.
        pairs: further differences, (decoder, baseline).
        allowed: shares of answers that may be amiss.
        draws: of the bootstrap.

    Returns:
        {"identity", "reference", "rows", "costs", "verdicts", "checks", "void", "warnings", "tasks", "decoders"};
        without rows where the run is void.

    Raises:
        DataError: an answer stands twice or belongs to no item, or something can't be scored.
    """
    decoders = [dict(decoder) for decoder in decoders]
    if not decoders:
        raise DataError("No decoder is listed: there is nothing to score.")
    reference = next((d["name"] for d in decoders if d.get("role") == "reference"), decoders[0]["name"])
    derived = [decoder for decoder in decoders if decoder.get("derive")]
    tallies = _tallies(_batches(answers), items, tasks, frozenset([reference] if derived else ()))
    warnings = [sentence for decoder in derived for sentence in _derive(tallies, decoder, reference)]
    found = validity(tallies.values(), decoders, reference, allowed)
    tests = {name: tally for name, tally in tallies.items() if not tally.calibrates}
    results: dict[str, Any] = {"identity": identity(), "reference": reference, "rows": [], "verdicts": [], "checks": []}
    results["costs"] = [row for tally in tests.values() for row in work_rows(tally, decoders)]
    results["costs"] += cost_rows(_batches(costs), tests, decoders, reference, draws)
    if not found.void:
        owners = Counter(row for tally in tests.values() for row in tally.rows)
        rows: list[Row] = []
        controls: dict[tuple[str, str], str] = {}
        for (name, _), tally in tests.items():
            best = _best_controls(_calibration(tallies, name), decoders)
            measured = Measured(tally, decoders, reference, owners, draws)
            warnings += measured.warnings
            rows += measured.rows([*_pairs(decoders, reference), *best.items(), *pairs])
            controls |= {(task, decoder): control for task in measured.tasks() for decoder, control in best.items()}
        results["rows"] = with_holm(rows, reference)
        results["verdicts"] = verdicts(rows, decoders, reference, controls)
        results["checks"] = capability(rows, reference)
        warnings += [check["sentence"] for check in results["checks"] if not check["passed"]]
    told = {"void": found.void, "warnings": list(dict.fromkeys([*found.warnings, *warnings]))}
    return results | told | {"tasks": [dict(task) for task in tasks], "decoders": decoders}


def identity() -> str:
    """Return a digest of the code that scores: metrics and statistics, with their tables."""
    whole = hashlib.sha256()
    room = Path(__file__).parents[1]
    for path in sorted(path for name in ("metrics", "stats", "data") for path in (room / name).rglob("*")):
        if path.suffix in (".py", ".json", ".txt"):
            whole.update(path.relative_to(room).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return whole.hexdigest()[:16]


def _batches(rows: pa.Table | Iterable[pa.RecordBatch]) -> Iterable[pa.RecordBatch]:
    if isinstance(rows, pa.Table):
        rows = list(rows.to_batches(max_chunksize=BATCH))
    return list(rows) if isinstance(rows, Iterator) else rows


def _tallies(
    answers: Iterable[pa.RecordBatch],
    items: Iterable[Mapping[str, Any]],
    tasks: Sequence[Described],
    keep: frozenset[str],
) -> Tallies:
    """Count all answers, task by task and split by split, in the order of the tasks."""
    listed: dict[tuple[str, str], Items] = {}
    for row in items:
        of = listed.setdefault((row["task"], row["split"]), Items())
        of.keys.append(row["item"])
        of.pictures.append(row["picture"])
        of.truths.append(row.get("truth"))
        of.tags.append(row.get("tags") or {})
        of.rows.append(tuple(dict.fromkeys(row.get("rows") or (row["task"],))))
    known = {task["name"]: task for task in tasks}
    tallies = {
        (name, split): Tally(task, split, listed[name, split], keep)
        for name, task in known.items()
        for split in dict.fromkeys(split for of, split in listed if of == name)
    }
    for name, batch in split_up(answers):
        if name not in tallies:
            raise DataError(f"There are answers to {name[0]} ({name[1]}), of which no item is listed.")
        tallies[name].see(batch)
    for tally in tallies.values():
        tally.seen()
    for name, batch in split_up(answers):
        tallies[name].add(batch)
    for tally in tallies.values():
        tally.counted()
    return tallies


def _derive(tallies: Tallies, decoder: Described, reference: str) -> Iterator[str]:
    """Add the answers of a decoder that nobody was asked for, to yes/no tasks; yields why where there are none."""
    from lvlm_guard.evals.decoders.derived import derive

    for (name, _), tally in tallies.items():
        if not tally.metric.ranked or not tally.of(reference):
            continue
        calibration = _calibration(tallies, name)
        try:
            rows = derive(decoder, _as_rows(tally, reference), _as_rows(calibration, reference) if calibration else [])
        except DataError as error:
            if not tally.calibrates:
                yield f"{name}: {error}"
            continue
        score = np.full(len(tally.items.keys), np.nan)
        places = [tally.at[row["item"]] for row in rows]
        score[places] = [row["score"] for row in rows]
        texts = dict(zip(places, (row["text"] for row in rows), strict=True))
        tally.derive((decoder["name"], 0), decoder["role"], decoder.get("baseline"), texts, score)


def _as_rows(tally: Tally, decoder: str) -> list[dict[str, Any]]:
    """Return a decoder's answers to the items that all answered, as `derive` takes them."""
    given = tally.of(decoder)
    if not given:
        return []
    one = given[0]
    score, mass = ([None if np.isnan(x) else float(x) for x in each] for each in (one.score, one.mass))
    return [
        {"item": tally.items.keys[at], "text": one.texts[at], "score": score[at], "mass": mass[at]}
        | {"truth": tally.items.truths[at]}
        for at in np.flatnonzero(tally.whole).tolist()
    ]


def _calibration(tallies: Tallies, task: str) -> Tally | None:
    return next((tally for (name, _), tally in tallies.items() if name == task and tally.calibrates), None)


def _pairs(decoders: Sequence[Described], reference: str) -> list[tuple[str, str]]:
    """Return what is compared in any case: all with the reference and their baselines, methods with their controls."""
    names = [d["name"] for d in decoders]
    pairs = [(name, reference) for name in names]
    pairs += [(d["name"], d["baseline"]) for d in decoders if d.get("baseline")]
    pairs += [(d["control_of"], d["name"]) for d in decoders if d.get("control_of")]
    return [pair for pair in pairs if pair[0] != pair[1]]


def _best_controls(calibration: Tally | None, decoders: Sequence[Described]) -> dict[str, str]:
    """Return decoder -> the best control of its decoding, where calibration items tell; empty elsewhere."""
    if calibration is None or not calibration.metric.ranked:
        return {}
    accuracy = {
        name: float(np.mean([right[calibration.whole].mean() for right in right_of(calibration, name)]))
        for name in calibration.decoders()
    }
    held = [d for d in decoders if d.get("role") not in ("reference", "plain")]
    return {d["name"]: best for d in held if (best := best_control(d, decoders, accuracy))}
