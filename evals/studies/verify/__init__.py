"""How well verifiers tell objects that are in a picture from hallucinated ones, on the plain model's own descriptions.

`mentions`: what the model says, and which objects it names; `judges`: matchers, and published detectors on an untuned
CLIP, asked about each mention. Descriptions and each verifier's verdicts are runs on the spine of all runs, in folders
of their own: what is on disk is not asked again, and what was answered by other weights, code or versions, or on
another device, is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import lvlm_guard
from lvlm_guard.evals.decoders.decoder import REFERENCE, Decoder
from lvlm_guard.evals.decoders.lineup import decoders_of
from lvlm_guard.evals.decoders.matchers import check_matchers, load_matchers
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.infer.ask import ask
from lvlm_guard.evals.infer.generate import Prepared, where_of
from lvlm_guard.evals.infer.ranks import one_thread
from lvlm_guard.evals.infer.record import environment
from lvlm_guard.evals.infer.store import ANSWERS, COSTLY, Job, Took
from lvlm_guard.evals.report.layout import Results, said
from lvlm_guard.evals.report.terminal import worded
from lvlm_guard.evals.spec.answers import SCHEMA
from lvlm_guard.evals.spec.items import EvalTask
from lvlm_guard.evals.spec.jsonl import write_lines
from lvlm_guard.evals.spec.settings import EMBEDDED, Settings
from lvlm_guard.evals.stats.bootstrap import DRAWS
from lvlm_guard.evals.stats.score import score_answers
from lvlm_guard.evals.studies.verify.judges import BASELINES, CALIBRATED, TOKEN, ClipJudge, Judge, MatcherJudge
from lvlm_guard.evals.studies.verify.mentions import describe, mentions_of
from lvlm_guard.evals.tasks import tasks_of
from lvlm_guard.matching import Vocabulary, load_matcher
from lvlm_guard.pretrained import load_model

COMMAND = "eval verify"
MANY = 64  # mentions of a block
SEED = SCHEMA.get_field_index("seed")
_Answered = tuple[pa.Table, float]  # answers, and the seconds that they took, a picture that was described
CODE = ("verify", *(f"evals/studies/verify/{name}.py" for name in ("judges", "mentions")))
"""What decides answers beside the code that decides those of all runs; to mend what scores and reports costs none."""

METRICS = ("auroc", "accuracy_matched", "brier", "calibration_error", "marked", "mark_precision", "mark_recall")
"""In the order of the rows, with the share that is hallucinated after them."""


def verify_run(
    settings: Settings,
    out: str | Path,
    clip: str = "clip",
    *,
    echo: Callable[[str], object] = print,
    bar: bool | None = None,
    started_over: bool = False,
    line: str = "",
) -> dict[str, Any]:
    """Let the model describe pictures, ask every verifier about each object named, and write the report.

    Descriptions and verdicts go to folders in `out` as they come; the same call goes on where it stopped, and one with
    further matchers asks these alone. `settings` have the model, one task of captions, and matchers: name -> names,
    folders or hub ids, one for each training seed; the baselines stand on the untuned `clip`; `line` is the command as
    typed. Returns what report.json holds. Raises `DataError` (no task of captions; nothing is named or to be told
    apart; answers in the folder were made by others), `UnsupportedCallError` (a matcher can't judge), and what `ask`
    raises.
    """
    folder, matchers = Path(out), settings.matchers
    if taken := [name for name in matchers if name in (*BASELINES, TOKEN, REFERENCE)]:
        raise DataError(f"--matcher {taken[0]}: {taken[0]!r} is the name of a baseline here; give another one.")
    check_matchers(matchers)
    plain = replace(settings, matchers={})

    def asked(part: str, task: EvalTask, decoders: list[Decoder], who: Any, version: str, **by: Any) -> _Answered:
        prepared = Prepared(replace(plain, **by), [task], decoders, who, version, where=where)
        how: dict[str, Any] = {"bar": bar, "started_over": started_over, "command": COMMAND, "beside": CODE}
        ask(prepared.settings, folder / part, prepared=prepared, echo=lambda told: echo(f"{part}: {told}"), **how)
        costs = pq.read_table(folder / part / COSTLY, columns=["seconds"])["seconds"]
        return pq.read_table(folder / part / ANSWERS), float(costs.to_numpy().sum()) / len(tasks[0].items)

    with one_thread(settings.model == EMBEDDED):
        tasks = tasks_of(settings)
        if [task.kind for task in tasks] != ["chair"]:
            told = f"{', '.join(settings.tasks)} is not one task of captions whose objects are known"
            raise DataError(f"{told}: give world_chair, or chair (with --images and --annotations).")
        (task,), how = tasks, {"device": settings.device, "dtype": settings.dtype}
        model, processor = load_model(settings.model, **how, revision=settings.revision or None)
        judges, where = _judges(settings, clip, model, Vocabulary.of(task.vocabulary)), where_of(model)
        greedy = decoders_of(replace(plain, controls=False))
        described, took = asked("descriptions", task, greedy, _Describer(model, processor), REFERENCE)
        texts, pieces = (described[column].to_pylist() for column in ("text", "proof"))
        named = mentions_of(task, list(zip(texts, map(json.loads, pieces), strict=True)))
        check_told_apart(named)
        tables, places = [], dict[str, list[dict[str, Any]]]()
        for judge in judges:
            name, version = judge.name or "baselines", judge.matcher.version
            part, by = f"verifiers/{name}-{sha256(judge.place.encode()).hexdigest()[:8]}", {name: (judge.place,)}
            mine, seconds = asked(part, named, judge.decoders, judge, version, matchers=by, batch=MANY)
            seeds = pa.array([judge.training] * len(mine), pa.int32())
            tables.append(mine.set_column(SEED, SCHEMA.field("seed"), seeds))
            places.setdefault(judge.name, []).append({"from": judge.place, "version": version, "seconds": seconds})
        table, verifiers = pa.concat_tables(tables).combine_chunks(), _verifiers(judges)
        results = results_of(named, table, verifiers, matchers)
        pq.write_table(table, folder / ANSWERS)
        where |= {"threads": str(torch.get_num_threads())}
    true = [item.truth == "yes" for item in named.items]
    report: dict[str, Any] = {"command": COMMAND, "version": lvlm_guard.__version__, "model": settings.model}
    report |= {"task": task.describe(), "settings": settings.to_dict()}
    met, cut = len({item.picture for item in named.items}), described["ended"].to_pylist().count(False)
    counts = {"pictures": len(task.items), "pictures_with_mentions": met, "mentions": len(true)}
    counts |= {"hallucinated": true.count(False), "empty": sum(not text.strip() for text in texts), "cut": cut}
    report["counts"] = counts
    report["bootstrap"] = {"draws": DRAWS, "seed": 0, "unit": "pictures, and trainings where there are several"}
    report["verifiers"] = [
        {"name": d.name, "about": d.about, "role": d.role, "trainings": d.seeds, "judged": d.name in matchers}
        for d in verifiers
    ]
    (report["clip"],) = places.pop("")
    report |= {"matchers": places, "seconds_a_description": took, **results}
    report["rows"] = [{"model": settings.model, "method": row["decoder"]} | row for row in results["rows"]]
    report |= {"environment": environment() | where, "call": line}
    report["remarks"] = sentences(report)[1:]
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    echo(f"Report: {write_lines(folder / 'report.json', [text])}")
    return report


def _judges(settings: Settings, place: str, model: Any, vocabulary: Vocabulary) -> list[Judge]:
    clip, matchers = ClipJudge(load_matcher(place, model=model), vocabulary, place), settings.matchers
    loaded = load_matchers((place for each in matchers.values() for place in each), matchers, model)
    judges: list[Judge] = [clip]
    for name, places in matchers.items():
        # the untuned CLIP's own score stands there already
        same = clip.calibrated and [loaded[place].version for place in places] == [clip.matcher.version]
        for number, place in enumerate(places):
            judges.append(MatcherJudge(loaded[place], vocabulary, place, name, number, scores=not same))
    return judges


@dataclass(frozen=True)
class _Describer:
    model: Any
    processor: Any

    def ask_all(self, jobs: Iterable[Job], took: Took) -> None:
        for job in jobs:
            took(job, job.todo[0], describe(self.model, self.processor, job.task, job.items))


def _verifiers(judges: Sequence[Judge]) -> list[Decoder]:
    """Return all verifiers, the baselines first; trainings of one name are seeds of one verifier."""
    found: dict[str, Decoder] = {}
    for one in (decoder for judge in judges for decoder in judge.decoders):
        places = (*(found[one.name].matchers if one.name in found else ()), *one.matchers)
        found[one.name] = replace(one, seeds=len(places), matchers=places)
    return list(found.values())


def check_told_apart(named: EvalTask) -> None:
    """Raise `DataError` where nothing is named, or there is nothing to tell apart."""
    true = {item.truth == "yes" for item in named.items}
    if not true:
        raise DataError("No description names an object, so there is nothing to verify.")
    if len(true) == 1:
        how = "true" if true.pop() else "hallucinated"
        raise DataError(f"All {len(named.items)} mentions are {how}, so there is nothing to tell apart: more pictures.")


def results_of(
    named: EvalTask, table: pa.Table, verifiers: Sequence[Decoder], matchers: Iterable[str]
) -> dict[str, Any]:
    """Return `stats.score`'s results: each figure with its interval, and differences on the same draws. Each verifier
    less calibrated CLIP, and each matcher less the other baselines."""
    check_told_apart(named)
    items = ({"task": named.name, "split": named.split} | item.describe() for item in named.items)
    pairs = [(name, other) for name in matchers for other in (*BASELINES[1:], TOKEN)]
    found = score_answers(table, items, [named.describe()], [d.describe() for d in verifiers], pairs=pairs)
    shared = [row | {"decoder": REFERENCE} for row in found["rows"] if row["metric"] == "hallucinated"]
    kept = [row for row in found["rows"] if row["metric"] in METRICS and row["value"] is not None]
    return found | {"rows": sorted(kept, key=lambda row: METRICS.index(row["metric"])) + shared, "warnings": []}


def sentences(report: Mapping[str, Any]) -> list[str]:
    """Return the study in words: how much was asked, verdicts on each matcher, and what limits them."""
    results, task = Results(report), report["task"]["name"]
    versions = {name: [one["version"] for one in of] for name, of in report["matchers"].items() if name != "blip-itm"}
    return worded(
        "verify",
        **report,
        verdict=partial(_verdict, results, task),
        value=partial(results.value, task),
        calibrated=CALIBRATED,
        shown=repr,
        single=[name for name, of in versions.items() if len(of) == 1 and of != [report["clip"]["version"]]],
    )


def _verdict(results: Results, row: str, name: str) -> str:
    ways: dict[str, list[str]] = {"beats": [], "is worse than": [], "is not told apart from": []}
    for other in BASELINES:
        found = results.difference(row, name, "auroc", other)
        if found is not None and found["value"] is not None:
            clear = found["low"] is not None and (found["low"] > 0 or found["high"] < 0)
            way = "is not told apart from" if not clear else "beats" if found["value"] > 0 else "is worse than"
            ways[way].append(f"{other} ({said({**found, 'p': None})})")
    parts = ", ".join(f"{way} {' and '.join(others)}" for way, others in ways.items() if others)
    falls_short = ways["is worse than"] or ways["is not told apart from"]
    end = ": not all that it must beat, so it should not be the default verifier here." if falls_short else "."
    return f"AUROC: {name} {parts}{end}"
