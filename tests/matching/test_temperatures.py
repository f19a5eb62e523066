"""The temperature of claims against their swaps, by a slow search and by who made the data."""

from __future__ import annotations

import numpy as np
import pytest

from lvlm_guard.errors import KnobError
from lvlm_guard.matching.platt import fit_tau


def drawn(tau: float, n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Claims that hold with the probability of a softmax at a temperature, half of them on the whole."""
    rng = np.random.default_rng(0)
    scores = rng.normal(0.25, 0.05, (n, 4))
    scores[:, 0] += 0.06
    weights = np.exp((scores - scores.max(1, keepdims=True)) / tau)
    return scores, rng.random(n) < weights[:, 0] / weights.sum(1)


@pytest.mark.parametrize("tau", [0.02, 0.05])
def test_the_temperature_that_made_the_labels_comes_back(tau: float) -> None:
    scores, true = drawn(tau)
    assert fit_tau(scores, true) == pytest.approx(tau, rel=0.15)


def test_no_other_temperature_of_a_grid_is_more_likely() -> None:
    scores, true = drawn(0.03, 300)

    def likelihood(tau: float) -> float:
        p = 1 / np.exp((scores - scores[:, :1]) / tau).sum(1)
        return float(np.log(p[true]).mean() + np.log1p(-p[~true].clip(max=1 - 1e-12)).mean())

    found = likelihood(fit_tau(scores, true))
    assert found >= max(likelihood(tau) for tau in np.geomspace(1e-3, 10, 400)) - 1e-6


def test_claims_of_one_kind_have_no_temperature() -> None:
    with pytest.raises(KnobError, match="true and false"):
        fit_tau(np.zeros((3, 2)), np.ones(3, bool))
