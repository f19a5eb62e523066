"""Platt scaling and temperatures: from scores on any scale to probabilities, and from those to log-odds."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lvlm_guard.errors import KnobError

CLIP = 1e-3
"""Probabilities are clipped to [CLIP, 1 - CLIP], so that one vote weighs 6.9 nats at most."""

COLDEST, HOTTEST = 1e-3, 10.0
"""Bounds of a fitted temperature; CLIP's own is 0.01."""


def log_odds(p: float, least: float = CLIP) -> float:
    """Return the log-odds of a probability, nats, once clipped to [least, 1 - least]."""
    p = min(max(p, least), 1 - least)
    return math.log(p) - math.log1p(-p)


def platt(scores: NDArray[np.float64], labels: NDArray[np.bool_], *, balanced: bool = False) -> tuple[float, float]:
    """Fit P(label) = sigmoid(a * score + b) by Newton's method; return (a, b).

    The targets are Platt's, (n1 + 1) / (n1 + 2) and 1 / (n0 + 2), so that separable data has a finite fit
    (Platt, "Probabilistic outputs for support vector machines", 1999).

    Args:
        scores, labels: [n]; scores on any scale. Where a label is missing, or the scores are all equal or not finite,
            there is nothing to fit, which raises `KnobError`.
        balanced: count both labels as often as each other, so that 0.5 is where the score tells nothing, however rare
            one of them is among these.
    """
    ones, zeros = int(labels.sum()), int((~labels).sum())
    spread = float(scores.std()) if len(scores) else math.nan
    if not ones or not zeros or not spread > 0:
        raise KnobError(
            f"A probability can't be fitted to {ones} true and {zeros} false scores with a deviation of {spread}: "
            "give scores of both kinds, finite and not all equal."
        )
    centre = float(scores.mean())
    target = np.where(labels, (ones + 1) / (ones + 2), 1 / (zeros + 2))
    counts = np.where(labels, len(labels) / (2 * ones), len(labels) / (2 * zeros)) if balanced else 1.0
    # Newton's method starts at a slope of 1, so the scores are brought to that scale
    design = np.stack([(scores - centre) / spread, np.ones_like(scores)], 1)
    fitted = np.array([1.0, 0.0])
    for _ in range(100):
        p = 1 / (1 + np.exp(-design @ fitted))
        hessian = (design * (counts * p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(2)
        change = np.linalg.solve(hessian, design.T @ (counts * (p - target)))
        fitted -= change
        if np.abs(change).max() < 1e-9:
            break
    slope = float(fitted[0]) / spread
    return slope, float(fitted[1]) - slope * centre


def fit_tau(scores: NDArray[np.float64], true: NDArray[np.bool_]) -> float:
    """Return the temperature at which softmax(scores / tau) gives claims their probability, by maximum likelihood.

    True and false claims count alike, however many there are. Raises `KnobError` where a kind is missing, or a swap.
    Scores, [n, 1 + swaps], are cosines of a claim, then of its swaps; true, [n], says which claims hold.
    """
    from scipy.optimize import minimize_scalar  # not above: servers need log_odds alone, and this takes half a second
    from scipy.special import log_softmax

    if scores.ndim != 2 or scores.shape[1] < 2 or not true.any() or true.all():
        raise KnobError(
            f"A temperature can't be fitted to scores of shape {scores.shape}, of which {int(true.sum())} claims hold: "
            "give true and false claims, each with a swap or more."
        )
    counts = np.where(true, 1 / true.sum(), 1 / (~true).sum())

    def loss(log_tau: float) -> float:
        log_p = log_softmax(scores / np.exp(log_tau), axis=1)[:, 0]
        return float(-(counts * np.where(true, log_p, np.log(-np.expm1(np.minimum(log_p, -1e-12))))).sum())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded").x))
