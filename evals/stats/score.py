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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.metric import Array, share
from lvlm_guard.evals.spec import jsonl
from lvlm_guard.evals.spec.answers import COSTS
from lvlm_guard.evals.stats.bootstrap import DRAWS, Draws, Estimate, estimate
from lvlm_guard.evals.stats.results import Measured, Row, row_of, with_holm
from lvlm_guard.evals.stats.tally import WORK, Answers, Stored, Tally, split_up, tallies_of
from lvlm_guard.evals.stats.validity import Allowed, validity
from lvlm_guard.evals.stats.verdict import calibration, capability, controls_of, derive_answers, pairs_of, verdicts

ANSWERS, COSTLY, ITEMS, ASKED, RESULTS = "answers.parquet", "costs.parquet", "items.jsonl", "asked.json", "results.json"
VERDICTS = "verdicts"  # folder of a judge's replies
Described = Mapping[str, Any]


def score(
    folder: str | Path,
    *,
    allowed: Allowed | None = None,
    repope: str | Path | None = None,
    dialects: Sequence[str] = (),
) -> dict[str, Any]:
    """Score the answers of a run, and write `results.json` beside them; returns what it holds.

    With `repope`, RePOPE's folder or "fetch", answers to POPE's questions about COCO are scored by its labels too.
    `dialects` are of CHAIR, beside ours and the stand-alone script's: "wordnet" is that of papers since OPERA. Raises
    `DataError` where the folder holds no whole run, or an answer can't be scored; `RunError` where the disk is full.
    """
    folder = Path(folder)
    missing = [name for name in (ASKED, ITEMS, ANSWERS) if not (folder / name).exists()]
    if missing:
        told = "it is no run, or not all of it was asked. `lvlm-guard eval ask` makes one, and goes on with one."
        raise DataError(f"{folder} holds no {missing[0]}: {told}")
    asked, note = json.loads((folder / ASKED).read_text(encoding="utf-8")), ""
    tasks: Sequence[Described] = [task | {"about": dict(task.get("about") or {})} for task in asked["tasks"]]
    for task in tasks:  # what only scoring knows
        if task["kind"] == "mmhal":
            task["about"]["verdicts"] = [str(path) for path in sorted((folder / VERDICTS).glob("*.json"))]
        if task["kind"] == "chair" and not task.get("vocabulary"):
            task["about"]["dialects"] = list(dict.fromkeys(("ours", "pattern", *dialects)))
    answers, items, costs = stored(folder)
    if repope is not None:
        from lvlm_guard.evals.tasks.repope import rescored

        tasks, items, answers, note = rescored(repope, tasks, items, answers)
    results = score_answers(answers, items, tasks, asked["decoders"], costs=costs, allowed=allowed)
    results["warnings"] += [note] if note else []
    results |= {"settings": asked["settings"], "asked": asked.get("identity"), "allowed": asdict(allowed or Allowed())}
    results |= {name: asked.get(name) for name in ("environment", "flags")}
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)  # NaN is no JSON, and equals nothing
    jsonl.write_lines(folder / RESULTS, [text])
    return results


def stored(folder: Path) -> tuple[Answers, Iterable[Described], Answers]:
    """Return the answers, items and costs of a run, read as they are gone through."""
    costs = folder / COSTLY
    items = (row for _, row in jsonl.numbered(folder / ITEMS))
    return Stored(folder / ANSWERS), items, Stored(costs, COSTS) if costs.exists() else ()


def score_answers(
    answers: Answers,
    items: Iterable[Described],
    tasks: Sequence[Described],
    decoders: Sequence[Described],
    *,
    costs: Answers = (),
    pairs: Sequence[tuple[str, str]] = (),
    allowed: Allowed | None = None,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Score answers: values with intervals, paired differences with intervals and tests, verdicts.

    Every decoder is compared with the reference (the decoder of that role, else the first), its baseline, its own
    controls, and the best control of its decoding, which calibration items choose.

    Args:
        answers, costs: of `spec.answers.SCHEMA` and `COSTS`, in any order.
        items, tasks, decoders: rows of `items.jsonl`; as `EvalTask.describe()` and `Decoder.describe()` have them.
        pairs, allowed: further differences, (decoder, baseline); shares of answers that may be amiss.

    Returns what `results.json` holds; without rows where the run is void. Raises `DataError` where an answer stands
    twice or belongs to no item, or something can't be scored.
    """
    decoders = [dict(decoder) for decoder in decoders]
    if not decoders:
        raise DataError("No decoder is listed: there is nothing to score.")
    reference = next((d["name"] for d in decoders if d.get("role") == "reference"), decoders[0]["name"])
    derived = [decoder for decoder in decoders if decoder.get("derive")]
    tallies = tallies_of(answers, items, tasks, frozenset([reference] if derived else ()))
    warnings = [sentence for decoder in derived for sentence in derive_answers(tallies, decoder, reference)]
    for tally in tallies.values():
        for name in set(tally.decoders()) - {decoder["name"] for decoder in decoders}:
            raise DataError(f"{tally.name} was answered by {name}, which is none of the listed decoders.")
    void, told = validity(tallies.values(), decoders, reference, allowed)
    tests = {name: tally for name, tally in tallies.items() if not tally.calibrates}
    rows: list[Row] = []
    controls: dict[tuple[str, str], str] = {}
    owners = Counter(row for tally in tests.values() for row in tally.rows)
    for (name, _), tally in tests.items() if not void else ():
        held, best = controls_of(calibration(tallies, name), decoders)
        measured = Measured(tally, decoders, reference, owners, draws)
        warnings += measured.warnings
        rows += measured.rows([*pairs_of(decoders, reference), *held, *pairs])
        controls |= {(task, decoder): control for task in measured.tasks() for decoder, control in best.items()}
    with_holm(rows, lambda row: (row["task"], row["metric"]) if row["baseline"] == reference else None, several=2)
    checks = list(capability(rows, reference))
    warnings += [check["sentence"] for check in checks if not check["passed"]]
    work = [row for tally in tests.values() for row in work_rows(tally, decoders)]
    found: dict[str, Any] = {"identity": identity(), "reference": reference, "rows": rows}
    found |= {"verdicts": list(verdicts(rows, decoders, reference, controls)), "checks": checks}
    found |= {"costs": [*work, *cost_rows(costs, tests, decoders, reference, draws)], "void": void}
    found |= {"warnings": list(dict.fromkeys([*told, *warnings])), "tasks": [dict(task) for task in tasks]}
    return found | {"decoders": decoders}


def identity() -> str:
    """Return a digest of the code that scores: metrics and statistics, with their tables."""
    whole = hashlib.sha256()
    room = Path(__file__).parents[1]
    for path in sorted(path for name in ("metrics", "stats", "data") for path in (room / name).rglob("*")):
        if path.suffix in (".py", ".json", ".txt"):
            whole.update(path.relative_to(room).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return whole.hexdigest()[:16]


def work_rows(tally: Tally, decoders: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Yield tokens, forwards, those of second branches, and masks: means an answer, of each decoder that was asked."""
    for decoder in decoders:
        given = tally.of(decoder["name"])
        n = sum(int((one.there > 0).sum()) for one in given)
        if n and not decoder.get("derive"):
            work = np.sum([one.work for one in given], axis=0) / n
            for metric, mean in zip(WORK.values(), work.tolist(), strict=True):
                if np.isfinite(mean):  # what was not measured, as at a server, has no row
                    yield row_of(tally, decoder, metric, Estimate(mean), n)


def cost_rows(
    costs: Answers,
    tallies: Mapping[tuple[str, str], Tally],
    decoders: Sequence[Mapping[str, Any]],
    reference: str,
    draws: int = DRAWS,
) -> Iterator[Row]:
    """Yield seconds an answer, their ratio to the reference's on the same pictures, and peak memory. `costs` are of
    `spec.answers.COSTS`; those of tasks and splits that `tallies` lacks are passed over."""
    spent: dict[tuple[str, str], dict[str, Array]] = {}  # task -> decoder -> [P, 2], seconds and answers
    peaks: dict[tuple[tuple[str, str], str], float] = {}
    for name, batch in split_up(costs):
        if name not in tallies:
            continue
        tally, seconds = tallies[name], batch["seconds"].to_numpy(zero_copy_only=False)
        peak = batch["peak_mib"].to_numpy(zero_copy_only=False).astype(float)
        for run, chosen, places in tally.by_run(batch):
            if run not in tally.runs or not tally.runs[run].there[places].any():
                continue
            there = tally.runs[run].there[places] > 0  # a request that failed tells no time
            chosen, pictures = chosen[there], tally.picture[places[there]]
            table = spent.setdefault(name, {}).setdefault(run[0], np.zeros((tally.pictures, 2)))
            np.add.at(table, pictures, np.stack([seconds[chosen], np.ones(len(chosen))], -1))
            known = peak[chosen][~np.isnan(peak[chosen])]
            if len(known):
                peaks[name, run[0]] = max(float(known.max()), peaks.get((name, run[0]), -np.inf))
    for name, tables in spent.items():
        for told in (d for d in decoders if d["name"] in tables):
            mine, peak = tables[told["name"]], peaks.get((name, told["name"]))
            n = int(mine[:, 1].sum())
            ratio = _ratio(mine, tables[reference], draws) if reference in tables else None
            found = {"seconds": Estimate(float(mine[:, 0].sum() / n)), "time_ratio": ratio}
            found["peak_memory_mib"] = None if peak is None else Estimate(peak)
            for metric, value in found.items():
                if value is not None:
                    yield row_of(tallies[name], told, metric, value, n)


def _ratio(ours: Array, theirs: Array, draws: int) -> Estimate | None:
    both = (ours[:, 1] > 0) & (theirs[:, 1] > 0)
    pair = np.stack([share(table[both, 0], table[both, 1]) for table in (ours, theirs)], -1)
    if not len(pair) or not pair[:, 1].sum() > 0:
        return None
    sums = Draws(len(pair), draws=draws).sums({"both": pair})["both"]
    ratio = estimate(share(sums[:, 0], sums[:, 1], np.nan))
    return ratio if len(pair) > 1 else Estimate(ratio.value)
