"""From the grid's runs to figures: measured with intervals, beside what is published.

Needs neither torch nor transformers nor lmms-eval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lvlm_guard.evals.metrics.metric import Array
from lvlm_guard.evals.report.saved import Run
from lvlm_guard.evals.stats.bootstrap import Estimate, difference, estimate
from lvlm_guard.evals.stats.reading import tallies_of
from lvlm_guard.evals.stats.results import Measured, Row
from lvlm_guard.evals.studies.reproduce.published import MEAN, Published, look_up

KINDS = ("random", "popular", "adversarial")
POPE = ("accuracy", "precision", "recall", "f1")
CHAIR = ("chair_s", "chair_i", "object_recall", "length")
DIFFERENCES = (("agla", "regular"), ("agla", "matched"))


@dataclass(frozen=True)
class Finished:
    """A finished cell of the grid.

    Args:
        model, task, data, mode: see `plan.Cell`.
        run: its run.
    """

    model: str
    task: str
    data: str
    mode: str
    run: Run


def figures(runs: Sequence[Finished]) -> list[Row]:
    """Return the figures of finished cells: each data set, and the mean over the three where all are there.

    Intervals (95 %) draw pictures, of each data set for itself; differences are paired.
    """
    found: list[Row] = []
    for model, mode in dict.fromkeys((run.model, run.mode) for run in runs):
        mine = [run for run in runs if (run.model, run.mode) == (model, mode)]
        pope = {run.data: _measured(run) for run in mine if run.task == "pope"}
        groups = {data: [one] for data, one in pope.items()}
        if {"coco", "aokvqa", "gqa"} <= pope.keys():
            groups = {MEAN: list(pope.values())} | groups
        for data, together in groups.items():
            for kind in KINDS:
                where = {"model": model, "data": data, "kind": kind, "mode": mode, "task": f"pope_{kind}"}
                found += _rows(where, together, {metric: f"{metric}_agla" for metric in POPE})  # as AGLA's script reads
        for run in mine:
            if run.task == "chair":
                measured, methods = _measured(run)
                where = {"model": model, "data": run.data, "kind": "chair", "mode": mode, "task": "chair"}
                # with the published script's slips, where they matter
                official = {m: f"{m}_official" if f"{m}_official" in measured.scores else m for m in CHAIR}
                found += _rows(where, [(measured, methods)], official)
    return found


def methods_of(decoders: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return method of a figure -> decoder of a run; all are sampled, as in the paper.

    "matched" is sampling at the lower temperature that is as sharp as AGLA, which tells what the local view adds
    beyond that.
    """
    found = {}
    for one in decoders:
        if one["role"] == "plain":
            found["regular"] = one["name"]
        elif one["role"] == "method" and one["method"] == "agla" and one["sampled"]:
            found["agla"] = one["name"]
        elif one["role"] == "control" and one["method"] is None and one["options"].get("temperature", 1.0) < 1:
            found["matched"] = one["name"]
    return {method: found[method] for method in ("regular", "matched", "agla") if method in found}


def _measured(run: Finished) -> tuple[Measured, dict[str, str]]:
    """Return a run's one task as its drawn figures, and who stands for which method."""
    asked = run.run.asked
    (task,) = asked["tasks"]
    table = run.run.answers(task=task["name"], split=task["split"])
    (tally,) = tallies_of(table, run.run.items[task["name"]].values(), [task], frozenset()).values()
    methods = methods_of(asked["decoders"])
    return Measured(tally, asked["decoders"], methods["regular"], dict.fromkeys(tally.rows, 1)), methods


def _rows(
    where: Mapping[str, Any], together: Sequence[tuple[Measured, dict[str, str]]], metrics: Mapping[str, str]
) -> Iterator[Row]:
    methods = list(together[0][1])
    n = sum(len(measured.places[where["task"]]) for measured, _ in together)
    for metric, read in metrics.items():
        drawn = {
            method: np.mean(
                [_apart(m.figures[where["task"], names[method], read], k) for k, (m, names) in enumerate(together)], 0
            )
            for method in methods
        }
        published = {
            method: look_up(where["model"], where["data"], where["kind"], method, metric) for method in methods
        }
        for method in methods:
            yield _row(
                {**where, "metric": metric, "method": method, "n": n}, estimate(drawn[method]), published[method]
            )
        for ours, theirs in DIFFERENCES:
            if ours in drawn and theirs in drawn:
                found = difference(drawn[ours], drawn[theirs])
                told = {**where, "metric": metric, "method": f"{ours}-{theirs}", "n": n}
                made = _row(told, found, _minus(published[ours], published[theirs]))
                yield made | {"p_value": found.p}


def _apart(figure: Array, place: int) -> Array:
    """Return a data set's draws in an order of their own: each begins with the same seed, and pictures are others."""
    return np.concatenate([figure[..., :1], np.roll(figure[..., 1:], 97 * place, axis=-1)], axis=-1)


def _row(told: Mapping[str, Any], found: Estimate, beside: Published | None) -> Row:
    row = {**told, "value": found.value, "low": found.low, "high": found.high}
    if beside is None:
        return row | {"published": None, "source": "", "note": "", "inside": None}
    known = found.low is not None and found.high is not None
    inside = known and found.low <= beside.value <= found.high  # type: ignore[operator]
    return row | {"published": beside.value, "source": beside.source, "note": beside.note, "inside": inside}


def _minus(a: Published | None, b: Published | None) -> Published | None:
    if a is None or b is None:
        return None
    return Published(round(a.value - b.value, 6), a.source, " ".join(note for note in (a.note, b.note) if note))
