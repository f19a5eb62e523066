"""From the grid's runs to figures: measured with intervals, beside what is published.

Needs neither torch nor transformers nor lmms-eval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lvlm_guard.evals.report.saved import Saved
from lvlm_guard.evals.stats import results as rows_
from lvlm_guard.evals.stats.bootstrap import Array, Draws, Score
from lvlm_guard.evals.stats.results import Row
from lvlm_guard.evals.stats.score import measure
from lvlm_guard.evals.studies.reproduce.published import MEAN, Published, look_up

KINDS = ("random", "popular", "adversarial")
POPE = ("accuracy", "precision", "recall", "f1")
CHAIR = ("chair_s", "chair_i", "object_recall", "length")

DECODERS = {"sample": "regular", "sample-matched": "matched", "agla-sample": "agla"}
"""Decoder of a run -> method of a figure. All are sampled at temperature 1, but for "matched": sampling at the lower
temperature that is as sharp as AGLA, which tells what the local view adds beyond that."""

DIFFERENCES = (("agla", "regular"), ("agla", "matched"))


@dataclass(frozen=True)
class Measured:
    """A finished cell of the grid.

    Args:
        model, task, data, mode: see `plan.Cell`.
        saved: its run.
    """

    model: str
    task: str
    data: str
    mode: str
    saved: Saved


def figures(runs: Sequence[Measured]) -> list[Row]:
    """Return the figures of finished cells: each data set, and the mean over the three where all are there.

    Intervals (95 %) draw pictures, of all data sets together for their mean; differences are paired.
    """
    found: list[Row] = []
    for model, mode in dict.fromkeys((run.model, run.mode) for run in runs):
        mine = [run for run in runs if (run.model, run.mode) == (model, mode)]
        pope = {run.data: _parts(run) for run in mine if run.task == "pope"}
        groups = {data: [parts] for data, parts in pope.items()}
        if {"coco", "aokvqa", "gqa"} <= pope.keys():
            groups = {MEAN: list(pope.values())} | groups
        for data, parts in groups.items():
            for kind in KINDS:
                together = [of_kind[f"pope_{kind}"] for of_kind in parts]
                # as AGLA's script reads answers
                metrics = {metric: f"{metric}_agla" for metric in POPE}
                found += _rows({"model": model, "data": data, "kind": kind, "mode": mode}, together, metrics)
        for run in mine:
            if run.task == "chair":
                (captions,) = _parts(run).values()
                # with the published script's slips, where they matter
                official = {metric: f"{metric}_official" for metric in CHAIR if f"{metric}_official" in captions.scores}
                where = {"model": model, "data": run.data, "kind": "chair", "mode": mode}
                found += _rows(where, [captions], {metric: official.get(metric, metric) for metric in CHAIR})
    return found


def _parts(run: Measured) -> dict[str, rows_.Measured]:
    """Return the counts of a run's result rows."""
    content = run.saved.run
    return {part.task: part for part in measure(run.saved.samples, content["tasks"], content["decoders"])}


def _rows(where: Mapping[str, Any], parts: Sequence[rows_.Measured], metrics: Mapping[str, str]) -> Iterator[Row]:
    names = {decoder: method for decoder, method in DECODERS.items() if decoder in parts[0].counts}
    draws = Draws({method: _beside([part.counts[decoder] for part in parts]) for decoder, method in names.items()})
    for metric, read in metrics.items():
        score = _mean(parts[0].scores[read], len(parts))
        told = dict(where) | {"task": f"pope_{where['kind']}" if where["kind"] in KINDS else "chair", "metric": metric}
        n = sum(part.n for part in parts)
        for method in names.values():
            estimate = draws.estimate(method, score)
            row = told | {"method": method, "value": estimate.value, "low": estimate.low, "high": estimate.high, "n": n}
            yield row | _published(row, look_up(where["model"], where["data"], where["kind"], method, metric))
        for ours, theirs in DIFFERENCES:
            if ours in names.values() and theirs in names.values():
                d = draws.difference(ours, theirs, score)
                row = told | {"method": f"{ours}-{theirs}", "value": d.value, "low": d.low, "high": d.high, "n": n}
                both = [look_up(where["model"], where["data"], where["kind"], m, metric) for m in (ours, theirs)]
                yield row | {"p_value": d.p_value} | _published(row, _minus(*both))


def _beside(tables: Sequence[Array]) -> Array:
    """Put the counts of several data sets into one table, each in columns of its own."""
    width = tables[0].shape[1]
    whole = np.zeros((sum(len(table) for table in tables), width * len(tables)))
    start = 0
    for place, table in enumerate(tables):
        whole[start : start + len(table), place * width : (place + 1) * width] = table
        start += len(table)
    return whole


def _mean(score: Score, parts: int) -> Score:
    """Return the mean of a score over data sets whose counts stand beside each other."""

    def mean(counts: Array) -> Array:
        found: Array = np.mean([score(block) for block in np.split(counts, parts, axis=-1)], axis=0)
        return found

    return mean


def _minus(a: Published | None, b: Published | None) -> Published | None:
    if a is None or b is None:
        return None
    return Published(round(a.value - b.value, 6), a.source, " ".join(note for note in (a.note, b.note) if note))


def _published(row: Row, found: Published | None) -> dict[str, Any]:
    if found is None:
        return {"published": None, "source": "", "note": "", "inside": None}
    inside = row["low"] <= found.value <= row["high"]
    return {"published": found.value, "source": found.source, "note": found.note, "inside": bool(inside)}
