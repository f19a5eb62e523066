"""Calibrated absence, and doubt about a number."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from lvlm_guard.adapters.ranker.card import RankerCard, fit_absence
from lvlm_guard.errors import KnobError


def absence(score: float, calibration: tuple[float, float]) -> float:
    return RankerCard("clip", 40, 24, calibration=calibration).absent(score)


def _scores(scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 5, 400)
    return scale * (values + rng.normal(0, 1.0, 400)), values


@pytest.mark.parametrize("scale", [1.0, 0.01, 500.0])
def test_the_fit_minimises_platts_loss_at_any_scale_of_scores(scale: float) -> None:
    scores, values = _scores(scale)
    none = values == 0
    targets = np.where(none, (none.sum() + 1) / (none.sum() + 2), 1 / ((~none).sum() + 2))

    def loss(parameters: np.ndarray) -> float:
        x = parameters[0] - parameters[1] * scores / scale
        return float((np.logaddexp(0, x) - targets * x).sum())

    a, b = fit_absence(scores, values)
    found = minimize(loss, [0.0, 1.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12, "maxiter": 4000})
    assert (a, b * scale) == pytest.approx(tuple(found.x), rel=1e-4, abs=1e-4)
    assert b > 0


def test_probabilities_are_calibrated() -> None:
    scores, values = _scores()
    calibration = fit_absence(scores, values)
    p = np.array([absence(score, calibration) for score in scores])
    assert p.mean() == pytest.approx((values == 0).mean(), abs=0.01)
    for low, high in ((0.0, 0.2), (0.2, 0.5), (0.5, 1.0)):
        inside = (p >= low) & (p < high)
        assert p[inside].mean() == pytest.approx((values[inside] == 0).mean(), abs=0.12)


def test_scores_that_separate_have_a_finite_fit() -> None:
    calibration = fit_absence([0.0, 0.1, 3.0, 4.0], [0, 0, 3, 4])
    assert np.isfinite(calibration).all()
    assert absence(0.0, calibration) > 0.5 > absence(3.0, calibration)


def test_scores_far_out_give_a_probability_and_no_overflow() -> None:
    assert absence(-1e6, (0.0, 1.0)) == 1.0
    assert absence(1e6, (0.0, 1.0)) == 0.0


@pytest.mark.parametrize(
    ("scores", "values", "why"),
    [
        ([1.0, 2.0], [1, 2], "0 of 2 validation pictures have the value 0"),
        ([1.0, 2.0], [0, 0], "2 of 2 validation pictures have the value 0"),
        ([1.0, 1.0], [0, 1], "All validation scores are equal"),
        ([np.nan, 1.0], [0, 1], "finite score"),
        ([1.0], [0, 1], "finite score"),
    ],
)
def test_what_can_not_be_calibrated_on_is_refused(scores: list[float], values: list[float], why: str) -> None:
    with pytest.raises(KnobError, match=why):
        fit_absence(scores, values)


def test_a_number_is_doubtful_beyond_the_rankers_error_and_by_more_than_one() -> None:
    sure, rough = (RankerCard("clip", 40, 24, mae=mae) for mae in (0.1, 2.0))
    assert not sure.doubts(3, 2.0)
    assert sure.doubts(3, 1.9)
    assert not rough.doubts(5, 2.0)
    assert rough.doubts(6, 2.0)
