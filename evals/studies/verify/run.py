"""Descriptions, verdicts, report: all of `lvlm-guard eval verify`, resumable at any moment."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lvlm_guard
from lvlm_guard.evals.decoders.matchers import check_matchers, load_matchers
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.infer.folder import alone, begin
from lvlm_guard.evals.infer.identity import environment
from lvlm_guard.evals.infer.progress import Meter
from lvlm_guard.evals.infer.threads import one_thread
from lvlm_guard.evals.spec.items import EvalTask
from lvlm_guard.evals.spec.settings import EMBEDDED, Settings
from lvlm_guard.evals.studies.verify.describing import Description, describe
from lvlm_guard.evals.studies.verify.figures import Drawn
from lvlm_guard.evals.studies.verify.judges import ClipJudge, Columns, Judge, MatcherJudge
from lvlm_guard.evals.studies.verify.kept import Kept
from lvlm_guard.evals.studies.verify.mentions import Mention, mentions_of
from lvlm_guard.evals.studies.verify.page import write_report
from lvlm_guard.evals.studies.verify.rows import reliabilities, rows_of
from lvlm_guard.evals.studies.verify.told import remarks
from lvlm_guard.evals.studies.verify.verifiers import Judged, check_names, verifiers_of
from lvlm_guard.evals.tasks import tasks_of
from lvlm_guard.matching import Vocabulary, load_matcher
from lvlm_guard.pretrained import load_model

COMMAND = "eval verify"
Echo = Callable[[str], object]


@dataclass(frozen=True)
class Wanted:
    """What is to be verified, and by whom.

    Args:
        settings: the model, one task of captions, and its pictures.
        matchers: name -> names, folders or hub ids for `load_matcher`, one for each training seed.
        clip: the untuned CLIP that the baselines stand on.
    """

    settings: Settings
    matchers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    clip: str = "clip"


def verify_run(
    wanted: Wanted,
    out: str | Path,
    *,
    echo: Echo = print,
    bar: bool | None = None,
    started_over: bool = False,
    line: str = "",
) -> dict[str, Any]:
    """Let the model describe pictures, ask every verifier about each object named, and write the report.

    Descriptions and verdicts go to `out/answers` as they come; the same call goes on where it stopped, and one with
    further matchers asks these alone.

    Args:
        wanted: what is measured.
        out: folder of report.json, report.md and report.html.
        echo: told what happens, a line at a time.
        bar: whether to draw a progress bar on the error stream; None: if it is a terminal.
        started_over: drop what an earlier run left in the folder.
        line: the command as it was typed.

    Returns:
        what report.json holds.

    Raises:
        DataError: the task is no task of captions, nothing is named, or there is nothing to tell apart.
        WeightsError, UnknownNameError: the model or a matcher can't be had.
        KnobError: trainings of one name are of different matchers, or the same.
        UnsupportedCallError: a matcher can't judge claims.
        KeyboardInterrupt: after a line that says where the answers are.
    """
    folder, settings = Path(out), wanted.settings
    check_names(list(wanted.matchers))
    check_matchers(wanted.matchers)
    with alone(folder), one_thread(settings.model == EMBEDDED):
        task = _captions(settings)
        begin(folder, settings, [task], COMMAND, started_over, replaces=False)
        model, processor = load_model(
            settings.model, device=settings.device, dtype=settings.dtype, revision=settings.revision or None
        )
        vocabulary = Vocabulary.of(task.vocabulary)
        judges = _judges(wanted, model, vocabulary)
        try:
            descriptions = _described(folder, task, model, processor, settings.batch, echo, bar)
            mentions = mentions_of(task, descriptions)
            judged = _judged(folder, task, mentions, judges, echo, bar)
        except KeyboardInterrupt:
            echo(f"Stopped. The answers so far are in {folder / 'answers'}; the same command goes on from there.")
            raise
        report = _report(wanted, task, descriptions, mentions, judged, line)
        report["environment"] = environment() | {
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }
        path = write_report(folder, report)
        echo(f"Report: {path}")
    return report


def _captions(settings: Settings) -> EvalTask:
    tasks = tasks_of(settings)
    if len(tasks) != 1 or tasks[0].kind != "chair":
        raise DataError(
            f"{', '.join(settings.tasks)} is not one task of captions whose objects are known: give world_chair (the "
            "embedded world) or chair (COCO, with --images and --annotations)."
        )
    return tasks[0]


def _judges(wanted: Wanted, model: Any, vocabulary: Vocabulary) -> dict[tuple[str, int], Judge]:
    """Return who judges: (name, number of the training) -> judge; the CLIP of the baselines is ("", 0)."""
    judges: dict[tuple[str, int], Judge] = {("", 0): ClipJudge(load_matcher(wanted.clip, model=model), vocabulary)}
    loaded = load_matchers((place for each in wanted.matchers.values() for place in each), wanted.matchers, model)
    for name, places in wanted.matchers.items():
        for number, place in enumerate(places):
            judges[name, number] = MatcherJudge(loaded[place], vocabulary)
    return judges


def _described(
    folder: Path, task: EvalTask, model: Any, processor: Any, batch: int, echo: Echo, bar: bool | None
) -> list[Description]:
    kept = Kept(folder / "answers" / "descriptions.jsonl", ("key",))
    missing = [item for item in task.items if kept.get(item.key) is None]
    echo(f"{task.name}: {len(task.items)} pictures, {len(task.items) - len(missing)} described already.")
    with Meter(len(missing), "descriptions", echo, bar) as meter:
        for start in range(0, len(missing), batch):
            block = missing[start : start + batch]
            kept.add(*(one.to_dict() for one in describe(model, processor, task, block)))
            meter.advance(len(block))
    return [Description.of(row) for item in task.items if (row := kept.get(item.key)) is not None]


def _judged(
    folder: Path,
    task: EvalTask,
    mentions: Sequence[Sequence[Mention]],
    judges: Mapping[tuple[str, int], Judge],
    echo: Echo,
    bar: bool | None,
) -> dict[tuple[str, int], Judged]:
    kept = Kept(folder / "answers" / "verdicts.jsonl", ("judge", "key"))
    versions = {judge.version: judge for judge in judges.values()}
    named = [(item, each) for item, each in zip(task.items, mentions, strict=True) if each]
    found: dict[str, list[dict[str, Any]]] = {version: [] for version in versions}
    with Meter(len(named) * len(versions), "verdicts", echo, bar) as meter:
        for item, each in named:
            objects = [mention.object for mention in each]
            image = None
            for version, judge in versions.items():
                row = kept.get(version, item.key)
                if row is None or row["objects"] != objects:
                    image = image or item.pictures()[0]
                    began = time.perf_counter()
                    columns = judge(image, each)
                    seconds = round(time.perf_counter() - began, 4)
                    row = {"judge": version, "key": item.key, "objects": objects, "seconds": seconds, **columns}
                    kept.add(row)
                found[version].append(row)
                meter.advance(1)
    return {who: _together(judge.version, found[judge.version]) for who, judge in judges.items()}


def _together(version: str, rows: Sequence[dict[str, Any]]) -> Judged:
    names = [name for name in rows[0] if name not in ("judge", "key", "objects", "seconds")] if rows else []
    columns: Columns = {name: [value for row in rows for value in row[name]] for name in names}
    seconds = float(np.mean([row["seconds"] for row in rows])) if rows else 0.0
    return Judged(version, {name: np.asarray(values, float) for name, values in columns.items()}, seconds)


def _report(
    wanted: Wanted,
    task: EvalTask,
    descriptions: Sequence[Description],
    mentions: Sequence[Sequence[Mention]],
    judged: Mapping[tuple[str, int], Judged],
    line: str,
) -> dict[str, Any]:
    flat = [mention for each in mentions for mention in each]
    places = [place for place, each in enumerate(mentions) for _ in each]
    drawn = Drawn(places, [mention.true for mention in flat])
    verifiers = verifiers_of(wanted.matchers, judged, np.array([mention.probability for mention in flat]))
    report = {
        "command": COMMAND,
        "version": lvlm_guard.__version__,
        "call": line,
        "model": wanted.settings.model,
        "task": task.describe(),
        "settings": wanted.settings.to_dict(),
        "counts": {
            "pictures": len(task.items),
            "pictures_with_mentions": sum(bool(each) for each in mentions),
            "mentions": len(flat),
            "hallucinated": sum(not mention.true for mention in flat),
            "empty": sum(not one.text.strip() for one in descriptions),
            "cut": sum(not one.ended for one in descriptions),
        },
        "bootstrap": {"draws": drawn.draws, "seed": 0, "unit": "pictures, and trainings where there are several"},
        "verifiers": [one.describe() for one in verifiers],
        "matchers": {
            name: [
                {"from": str(place), "version": judged[name, number].version, "seconds": judged[name, number].seconds}
                for number, place in enumerate(all_places)
            ]
            for name, all_places in wanted.matchers.items()
        },
        "clip": {"from": wanted.clip, "version": judged["", 0].version, "seconds": judged["", 0].seconds},
        "seconds_a_description": float(np.mean([one.seconds for one in descriptions])),
        "rows": rows_of(wanted.settings.model, task.name, verifiers, drawn),
        "reliability": reliabilities(verifiers, drawn),
    }
    return report | {"remarks": remarks(report)}
