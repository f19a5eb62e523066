import numpy as np
import pytest
from scipy.optimize import minimize

from lvlm_guard.errors import KnobError
from lvlm_guard.matching.platt import platt


def drawn(n, slope, offset, low=0.2, high=0.4, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.uniform(low, high, n)
    return scores, rng.random(n) < 1 / (1 + np.exp(-(slope * scores + offset)))


def test_the_odds_that_scores_were_drawn_from_come_back():
    assert platt(*drawn(20000, 30, -9)) == pytest.approx((30, -9), rel=0.1)


def test_the_fit_is_the_maximum_of_platts_likelihood():
    scores, labels = drawn(500, 0.7, -0.4, -6, 6)
    target = np.where(labels, (labels.sum() + 1) / (labels.sum() + 2), 1 / ((~labels).sum() + 2))

    def loss(w):
        z = w[0] * scores + w[1]
        return float((np.logaddexp(0, z) - target * z).sum())

    expected = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9}).x
    assert platt(scores, labels) == pytest.approx(expected, abs=1e-3)


def test_balanced_moves_the_threshold_to_where_a_score_tells_nothing():
    rng = np.random.default_rng(1)
    scores = np.concatenate([rng.normal(0.30, 0.02, 2000), rng.normal(0.26, 0.02, 80000)])
    labels = np.arange(len(scores)) < 2000
    slope, offset = platt(scores, labels, balanced=True)
    assert -offset / slope == pytest.approx(0.28, abs=0.001)
    assert slope == pytest.approx(0.04 / 0.02**2, rel=0.05)
    rare_slope, rare_offset = platt(scores, labels)
    assert rare_slope == pytest.approx(slope, rel=0.1)
    assert -rare_offset / rare_slope > 0.31  # one in forty: most that score .3 are false


def test_separable_scores_have_a_finite_fit():
    slope, offset = platt(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True]))
    assert 0 < slope < 1000
    assert -offset / slope == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("scores", "labels"),
    [([0.1, 0.2], [True, True]), ([0.1, 0.2], [False, False]), ([0.3, 0.3], [True, False]), ([], []),
     ([0.1, float("nan")], [True, False])],
)  # fmt: skip
def test_scores_with_nothing_to_fit_are_refused(scores, labels):
    with pytest.raises(KnobError, match="can't be fitted"):
        platt(np.array(scores), np.array(labels, dtype=bool))
