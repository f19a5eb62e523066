"""Figures of rankings against golden values, and against slow definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lvlm_guard.adapters.evaluation.metrics import (
    auroc,
    better,
    mean_figures,
    pair_accuracy,
    ranking_figures,
)
from lvlm_guard.errors import KnobError

VALUES = [0, 1, 1, 3]


def test_golden_figures_of_the_specification() -> None:
    figures = ranking_figures([0.2, 0.5, 1.5, 2.0], VALUES)
    assert figures.mae == pytest.approx(0.55)
    assert figures.accuracy == 0.25  # .5 rounds to 0 and 1.5 to 2: half to even
    assert figures.srcc == pytest.approx(0.9486833, abs=1e-7)
    assert figures.plcc == pytest.approx(0.8645619, abs=1e-7)
    assert figures.pair_accuracy == 1.0
    assert figures.absence_auroc == 1.0


def test_a_ranking_that_is_wrong_everywhere_has_no_pair_right() -> None:
    """The release's metric gives .385 here: 5 of 13 entries."""
    assert pair_accuracy([3, 1, 2, 0], VALUES) == 0.0


def test_equal_scores_of_unequal_values_are_not_right() -> None:
    assert pair_accuracy([1, 1, 1, 1], VALUES) == 0.0


def test_auroc_of_the_specification_and_by_pairs() -> None:
    assert auroc([0.9, 0.6, 0.6], [0.6, 0.2]) == pytest.approx(0.8333333, abs=1e-7)
    rng = np.random.default_rng(0)
    high, low = rng.integers(0, 6, 30), rng.integers(0, 5, 20)
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in high for b in low]
    assert auroc(high, low) == pytest.approx(np.mean(pairs))


def test_figures_that_are_undefined_are_nan_and_leave_the_mean_to_the_others() -> None:
    constant = ranking_figures([1.0, 1.0, 1.0], [1, 2, 3])
    assert math.isnan(constant.srcc)
    assert math.isnan(constant.plcc)
    assert math.isnan(constant.absence_auroc)
    known = ranking_figures([0.0, 1.0, 2.0], [0, 1, 2])
    mean = mean_figures({"dog": constant, "cat": known})
    assert mean.srcc == 1.0
    assert mean.mae == pytest.approx((1.0 + 0.0) / 2)
    assert math.isnan(mean_figures({}).mae)


def test_a_model_is_chosen_by_srcc_then_by_error() -> None:
    def figures(srcc: float, mae: float) -> dict[str, float]:
        return {"srcc": srcc, "mae": mae}

    assert better(figures(0.5, 1), None)
    assert better(figures(0.6, 2), figures(0.5, 1))
    assert better(figures(0.5, 0.9), figures(0.5, 1))
    assert not better(figures(0.5, 1), figures(0.5, 1))
    assert not better(figures(math.nan, 0), figures(-1, 5))


@pytest.mark.parametrize(
    ("scores", "values"), [([], []), ([1.0], [1.0, 2.0]), ([math.nan, 1], [0, 1]), ([[1.0]], [[1.0]])]
)
def test_scores_that_can_not_be_scored_are_refused(scores: list[float], values: list[float]) -> None:
    with pytest.raises(KnobError, match="finite score and value for each picture"):
        ranking_figures(scores, values)
