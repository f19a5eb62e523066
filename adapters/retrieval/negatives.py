"""Objects that a claim stands against, and how much a difference to them is worth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from lvlm_guard.errors import KnobError

LEAST, MOST = 1e-3, 10.0
"""Bounds of a fitted temperature; CLIP's own is 0.01."""


def fit_tau(scores: NDArray[np.float64], true: NDArray[np.bool_]) -> float:
    """Return the temperature at which softmax(scores / tau) gives claims their probability, by maximum likelihood.

    Args:
        scores: [n, 1 + swaps] cosines: of a claim, then of its swaps.
        true: [n], which claims hold; true and false ones count alike, however many there are of each.

    Raises:
        KnobError: a kind of claim is missing, or there is no swap.
    """
    if scores.ndim != 2 or scores.shape[1] < 2 or not true.any() or true.all():
        raise KnobError(
            f"A temperature can't be fitted to scores of shape {scores.shape}, of which {int(true.sum())} claims hold: "
            "give true and false claims, each with a swap or more."
        )
    counts = np.where(true, 1 / true.sum(), 1 / (~true).sum())

    def loss(log_tau: float) -> float:
        log_p = log_softmax(scores / np.exp(log_tau), axis=1)[:, 0]
        return float(-(counts * np.where(true, log_p, np.log(-np.expm1(np.minimum(log_p, -1e-12))))).sum())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(LEAST), np.log(MOST)), method="bounded").x))
