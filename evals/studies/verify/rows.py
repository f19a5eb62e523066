"""Rows in long form of all verifiers: their figures, and how much better they are than what they must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lvlm_guard.evals.stats.bootstrap import Array
from lvlm_guard.evals.studies.verify.figures import Drawn, estimate, reliability

Row = dict[str, Any]
Role = Literal["matcher", "score", "baseline"]

CALIBRATED, SENTENCE, FINE, TOKEN = "calibrated-clip", "clip-sentence", "f-clipscore", "token-probability"
BASELINES = (CALIBRATED, SENTENCE, FINE)
"""What a matcher must beat before it is anybody's default (adapters.md 4.6, numbers 1 to 3)."""

MODEL = "greedy"
"""Name of the model's own row."""


@dataclass(frozen=True)
class Verifier:
    """What one verifier says of all mentions.

    Args:
        name: in rows.
        about: what it is, in a few words.
        role: "matcher": a verdict; "score": a matcher's own probability; "baseline": one that others must beat.
        scores: [n] of each training: the higher, the more probable.
        probability: whether the scores are probabilities.
        marks: [n] of each training, 1 where a mention is marked as doubtful; () where it marks none.
    """

    name: str
    about: str
    role: Role
    scores: Sequence[Array]
    probability: bool = True
    marks: Sequence[Array] = ()

    def describe(self) -> dict[str, Any]:
        """Return it as it stands in the report."""
        return {"name": self.name, "about": self.about, "role": self.role, "trainings": len(self.scores)}


def rows_of(model: str, task: str, verifiers: Sequence[Verifier], drawn: Drawn) -> list[Row]:
    """Return each figure with its 95 % interval, and AUROC differences "a-b" on the same draws.

    Each verifier less calibrated CLIP, and each matcher less the other baselines.
    """
    n = len(drawn.true)
    rows = [_row(model, MODEL, task, "hallucinated", drawn.hallucinated(), n)]
    aurocs = {one.name: drawn.pooled([drawn.auroc(scores) for scores in one.scores]) for one in verifiers}
    for one in verifiers:
        rows.append(_row(model, one.name, task, "auroc", aurocs[one.name], n))
        if one.probability:
            brier = drawn.pooled([drawn.brier(p) for p in one.scores])
            rows.append(_row(model, one.name, task, "brier", brier, n))
            error = drawn.pooled([drawn.calibration_error(p) for p in one.scores])
            rows.append(_row(model, one.name, task, "calibration_error", error, n))
        marked = [drawn.marked(marks) for marks in one.marks]
        for metric in marked[0] if marked else ():
            rows.append(_row(model, one.name, task, metric, drawn.pooled([each[metric] for each in marked]), n))
    for one in verifiers:
        others = (*BASELINES, TOKEN) if one.role == "matcher" else (CALIBRATED,)
        for other in others:
            if other in aurocs and other != one.name:
                rows.append(_row(model, f"{one.name}-{other}", task, "auroc", aurocs[one.name] - aurocs[other], n))
    return rows


def reliabilities(verifiers: Sequence[Verifier], drawn: Drawn) -> Mapping[str, list[dict[str, float]]]:
    """Return the bins of each verifier that gives probabilities, its trainings together."""
    return {
        one.name: reliability(np.concatenate(one.scores), np.tile(drawn.true, len(one.scores)))
        for one in verifiers
        if one.probability
    }


def _row(model: str, method: str, task: str, metric: str, figure: Array, n: int) -> Row:
    found = estimate(figure)
    return {
        "model": model,
        "method": method,
        "task": task,
        "metric": metric,
        "value": found and found.value,
        "low": found and found.low,
        "high": found and found.high,
        "n": n,
    }
