"""How well verifiers tell objects that are in a picture from hallucinated ones, on the plain model's own descriptions.

`mentions`: what the model says, and which objects it names; `judges`: matchers, and published detectors on an untuned
CLIP, asked about each mention; `report`: the figures in words. Descriptions and each verifier's verdicts
are runs on the spine of all runs, in folders of their own: what is on disk is not asked again, and what was answered by
other weights, code or versions, or on another device, is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import lvlm_guard
from lvlm_guard.evals.decoders.decoder import REFERENCE, Decoder
from lvlm_guard.evals.decoders.lineup import decoders_of
from lvlm_guard.evals.decoders.logits import odds_of
from lvlm_guard.evals.decoders.matchers import check_matchers, load_matchers
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.infer.ask import ask
from lvlm_guard.evals.infer.prepare import Prepared, where_of
from lvlm_guard.evals.infer.ranks import one_thread
from lvlm_guard.evals.infer.record import environment
from lvlm_guard.evals.infer.store import ANSWERS, COSTLY, Job, Took
from lvlm_guard.evals.spec.answers import SCHEMA, Answer, table_of
from lvlm_guard.evals.spec.items import EvalTask
from lvlm_guard.evals.spec.jsonl import write_lines
from lvlm_guard.evals.spec.settings import EMBEDDED, Settings
from lvlm_guard.evals.stats.bootstrap import DRAWS
from lvlm_guard.evals.stats.score import score_answers
from lvlm_guard.evals.studies.verify.judges import BASELINES, CALIBRATED, TOKEN, ClipJudge, Judge, MatcherJudge
from lvlm_guard.evals.studies.verify.mentions import describe, mentions_of
from lvlm_guard.evals.studies.verify.report import remarks
from lvlm_guard.evals.tasks import tasks_of
from lvlm_guard.matching import Vocabulary, load_matcher
from lvlm_guard.pretrained import load_model

COMMAND = "eval verify"
MANY = 64  # mentions of a block
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
    for name in matchers:
        if name in (*BASELINES, TOKEN, REFERENCE):
            raise DataError(f"--matcher {name}: {name!r} is the name of a baseline here; give another one.")
    check_matchers(matchers)
    with one_thread(settings.model == EMBEDDED):
        task, *others = tasks_of(settings)
        if others or task.kind != "chair":
            told = f"{', '.join(settings.tasks)} is not one task of captions whose objects are known"
            raise DataError(f"{told}: give world_chair, or chair (with --images and --annotations).")
        model, processor = load_model(
            settings.model, device=settings.device, dtype=settings.dtype, revision=settings.revision or None
        )
        judges = _judges(settings, clip, model, Vocabulary.of(task.vocabulary))
        how = {"bar": bar, "started_over": started_over}
        asking = _Asking(folder, replace(settings, matchers={}), where_of(model), echo, how)
        plain = decoders_of(replace(asking.settings, controls=False))
        said = asking("descriptions", task, plain, _Describer(model, processor), REFERENCE)
        texts, pieces = (said[column].to_pylist() for column in ("text", "proof"))
        named = mentions_of(task, list(zip(texts, map(json.loads, pieces), strict=True)))
        answers = [asking.judge(judge, named) for judge in judges] if named.items else []
        verifiers, table = _verifiers(judges), _together(judges, answers, named)
        results = results_of(named, table, verifiers, matchers)
        pq.write_table(table, folder / ANSWERS)
        where = {**asking.where, "threads": torch.get_num_threads()}
    pictures, true = len(task.items), {item.key: item.truth == "yes" for item in named.items}
    places = [
        {"from": judge.place, "version": judge.matcher.version, "seconds": _seconds(mine) / pictures}
        for judge, mine in zip(judges, answers, strict=True)
    ]
    report: dict[str, Any] = {"command": COMMAND, "version": lvlm_guard.__version__, "model": settings.model}
    report |= {"task": task.describe(), "settings": settings.to_dict()}
    report["counts"] = {
        "pictures": pictures,
        "pictures_with_mentions": len({item.picture for item in named.items}),
        "mentions": len(true),
        "hallucinated": len(true) - sum(true.values()),
        "empty": sum(not text.strip() for text in texts),
        "cut": sum(not ended for ended in said["ended"].to_pylist()),
    }
    report["bootstrap"] = {"draws": DRAWS, "seed": 0, "unit": "pictures, and trainings where there are several"}
    report["verifiers"] = [
        {"name": d.name, "about": d.about, "role": d.role, "trainings": d.seeds, "judged": d.name in matchers}
        for d in verifiers
    ]
    by_name = [(judge.name, place) for judge, place in zip(judges, places, strict=True)]
    report["matchers"] = {name: [place for whose, place in by_name if whose == name] for name in matchers}
    report |= {"clip": places[0], "seconds_a_description": _seconds(said) / pictures, **results}
    report["rows"] = [{"model": settings.model, "method": row["decoder"]} | row for row in results["rows"]]
    report |= {"environment": environment() | where, "call": line}
    report["remarks"] = remarks(report)
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
class _Asking:
    """How everything in the folder of a study is asked."""

    folder: Path
    settings: Settings  # of the model
    where: dict[str, str]  # device and number format
    echo: Callable[[str], object]
    how: Mapping[str, Any]  # further arguments of `ask`

    def judge(self, judge: Judge, named: EvalTask) -> pa.Table:
        """Return a judge's verdicts on mentions."""
        name = judge.name or "baselines"
        part, by = f"verifiers/{name}-{sha256(judge.place.encode()).hexdigest()[:8]}", {name: (judge.place,)}
        return self(part, named, judge.decoders, judge, judge.matcher.version, matchers=by, batch=MANY)

    def __call__(
        self, part: str, task: EvalTask, decoders: list[Decoder], answerer: Any, version: str, **by: Any
    ) -> pa.Table:
        """Return the answers to a task with "seconds", asked for where they are not in the folder."""
        settings, how = replace(self.settings, **by), {**self.how, "command": COMMAND, "beside": CODE}
        who = Prepared(settings, [task], decoders, answerer, version, where=self.where)
        folder = ask(settings, self.folder / part, prepared=who, echo=lambda line: self.echo(f"{part}: {line}"), **how)
        seconds = pq.read_table(folder / COSTLY, columns=["seconds"])["seconds"]
        return pq.read_table(folder / ANSWERS).append_column("seconds", seconds)


@dataclass(frozen=True)
class _Describer:
    model: Any
    processor: Any

    def ask_all(self, jobs: Iterable[Job], took: Took) -> None:
        for job in jobs:
            took(job, job.todo[0], describe(self.model, self.processor, job.task, job.items))


def _seconds(answers: pa.Table) -> float:
    return float(answers["seconds"].to_numpy().sum())


def _verifiers(judges: Sequence[Judge]) -> list[Decoder]:
    """Return all verifiers, the baselines first; trainings of one name are seeds of one verifier."""
    found: dict[str, Decoder] = {}
    for one in judges:
        for decoder in one.decoders:
            places = (*found[decoder.name].matchers, one.place) if decoder.name in found else (one.place,)
            found[decoder.name] = replace(decoder, seeds=len(places), matchers=places)
        if not one.name:
            about = "the model's own probability of the word"
            found[TOKEN] = Decoder(TOKEN, about, (), role="control", baseline=CALIBRATED)
    return list(found.values())


def _together(judges: Sequence[Judge], answers: Sequence[pa.Table], named: EvalTask) -> pa.Table:
    own = []
    for item in named.items:
        p, known = item.tags["probability"], (named.name, named.split, item.key, item.picture)
        own.append(Answer(*known, TOKEN, "control", f"p {p:.6f}", CALIBRATED, score=odds_of(p), mass=1.0))
    tables, place = [table_of(own)], SCHEMA.get_field_index("seed")
    for judge, mine in zip(judges, answers, strict=False):  # none where nothing is named
        seeds = pa.array([judge.training] * len(mine), pa.int32())
        tables.append(mine.select(SCHEMA.names).set_column(place, SCHEMA.field("seed"), seeds))
    return pa.concat_tables(tables).combine_chunks()


def results_of(
    named: EvalTask, table: pa.Table, verifiers: Sequence[Decoder], matchers: Iterable[str]
) -> dict[str, Any]:
    """Return `stats.score`'s results: each figure with its interval, and differences on the same draws.

    Each verifier less calibrated CLIP, and each matcher less the other baselines. Raises `DataError` where nothing is
    named, or there is nothing to tell apart.
    """
    true = [item.truth == "yes" for item in named.items]
    if not true:
        raise DataError("No description names an object, so there is nothing to verify.")
    if len(set(true)) == 1:
        how = "true" if true[0] else "hallucinated"
        raise DataError(f"All {len(true)} mentions are {how}, so there is nothing to tell apart: give more pictures.")
    items = ({"task": named.name, "split": named.split} | item.describe() for item in named.items)
    pairs = [(name, other) for name in matchers for other in (*BASELINES[1:], TOKEN)]
    found = score_answers(table, items, [named.describe()], [d.describe() for d in verifiers], pairs=pairs)
    shared = [row | {"decoder": REFERENCE} for row in found["rows"] if row["metric"] == "hallucinated"]
    kept = [row for row in found["rows"] if row["metric"] in METRICS and row["value"] is not None]
    return found | {"rows": sorted(kept, key=lambda row: METRICS.index(row["metric"])) + shared, "warnings": []}
