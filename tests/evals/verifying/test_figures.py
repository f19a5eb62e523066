"""AUROC, calibration and marks of verifiers, against independent computations and drawings by hand."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, precision_score, recall_score, roc_auc_score

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.studies.verify.figures import Drawn, estimate, reliability
from lvlm_guard.evals.studies.verify.rows import CALIBRATED, Verifier, rows_of

RNG = np.random.default_rng(7)
TRUE = RNG.random(120) < 0.7
PICTURES = np.sort(RNG.integers(0, 40, 120))
P = np.clip(np.round(0.35 * TRUE + RNG.random(120) * 0.6, 1), 0, 1)  # rounded, so that there are ties


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return Drawn(PICTURES, TRUE, draws=400, seed=3)


def test_auroc_of_all_mentions_is_that_of_scikit_learn_with_ties(drawn: Drawn) -> None:
    assert drawn.auroc(P)[0] == pytest.approx(roc_auc_score(TRUE, P), abs=1e-12)


def test_auroc_of_a_draw_is_that_of_its_pictures_mentions_written_out(drawn: Drawn) -> None:
    weights = drawn.each(lambda w: w)
    found = drawn.auroc(P)
    for draw in (1, 17, 400):
        times = weights[draw].astype(int)
        assert found[draw] == pytest.approx(roc_auc_score(np.repeat(TRUE, times), np.repeat(P, times)), abs=1e-12)
        assert all(len(set(times[k == PICTURES])) == 1 for k in set(PICTURES))  # a picture has all mentions or none


def test_a_draw_has_as_many_pictures_as_were_measured(drawn: Drawn) -> None:
    first = np.unique(PICTURES, return_index=True)[1]
    assert (drawn.each(lambda w: w)[:, first].sum(1) == len(first)).all()


def test_a_perfect_a_blind_and_a_perverse_verifier_have_1_half_and_0(drawn: Drawn) -> None:
    for scores, value in ((TRUE, 1.0), (np.ones(120), 0.5), (~TRUE, 0.0)):
        found = estimate(drawn.auroc(scores.astype(float)))
        assert found is not None
        assert (found.value, found.low, found.high) == (value, value, value)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Four mentions a picture that share the picture's luck: an interval over mentions alone would be too narrow."""
    covered = 0
    for trial in range(120):
        rng = np.random.default_rng(trial)
        true = rng.random((60, 4)) < 0.6
        scores = true * 1.0 + rng.normal(0, 0.6, (60, 1)) + rng.normal(0, 0.8, (60, 4))
        found = estimate(Drawn(np.repeat(np.arange(60), 4), true.ravel(), draws=300, seed=trial).auroc(scores.ravel()))
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.7602499 <= found.high  # Phi(1 / sqrt(2)), both noises together have variance 1
    assert covered >= 106


def test_brier_and_marks_are_those_of_scikit_learn(drawn: Drawn) -> None:
    assert drawn.brier(P)[0] == pytest.approx(brier_score_loss(TRUE, P))
    marks = P < 0.5
    found = drawn.marked(marks)
    assert found["marked"][0] == pytest.approx(marks.mean())
    assert found["mark_precision"][0] == pytest.approx(precision_score(~TRUE, marks))
    assert found["mark_recall"][0] == pytest.approx(recall_score(~TRUE, marks))
    assert drawn.hallucinated()[0] == pytest.approx((~TRUE).mean())


def test_marks_that_are_never_set_have_no_precision(drawn: Drawn) -> None:
    found = drawn.marked(np.zeros(120))
    assert estimate(found["mark_precision"]) is None
    assert found["mark_recall"][0] == 0


def test_the_calibration_error_of_two_bins_is_what_a_hand_computes() -> None:
    drawn = Drawn([0, 0, 1, 1], [True, False, True, True], draws=10)
    # bin .6: two mentions, one true: gap .15; bin .9: two, both true: gap .05
    assert drawn.calibration_error([0.65, 0.65, 0.95, 0.95])[0] == pytest.approx((2 * 0.15 + 2 * 0.05) / 4)
    assert reliability([0.65, 0.65, 0.95, 1.0], [True, False, True, True]) == [
        {"p": 0.65, "true": 0.5, "n": 2},
        {"p": 0.975, "true": 1.0, "n": 2},
    ]


def test_trainings_are_drawn_too_and_their_mean_is_the_value(drawn: Drawn) -> None:
    good, bad = drawn.auroc(TRUE.astype(float)), drawn.auroc(np.ones(120))  # 1 and 1/2 on every draw
    found = drawn.pooled([good, bad, bad])
    assert found[0] == pytest.approx(2 / 3)
    # of three trainings drawn with replacement 0 to 3 are the good one: binomial with p = 1/3
    shares = [np.isclose(found[1:], 0.5 + 0.5 * k / 3).mean() for k in range(4)]
    assert shares == pytest.approx([8 / 27, 12 / 27, 6 / 27, 1 / 27], abs=0.08)
    assert drawn.pooled([good])[1:].tolist() == good[1:].tolist()


def test_a_difference_is_paired_so_that_equal_verifiers_differ_by_nothing_at_all(drawn: Drawn) -> None:
    verifiers = [
        Verifier(CALIBRATED, "", "baseline", [P]),
        Verifier("same", "", "matcher", [P, P, P], marks=[P < 0.5] * 3),
        Verifier("best", "", "matcher", [TRUE.astype(float)]),
    ]
    rows = {(row["method"], row["metric"]): row for row in rows_of("m", "t", verifiers, drawn)}
    same, best = rows[f"same-{CALIBRATED}", "auroc"], rows[f"best-{CALIBRATED}", "auroc"]
    assert (same["value"], same["low"], same["high"]) == pytest.approx((0, 0, 0), abs=1e-12)
    assert best["value"] == pytest.approx(1 - roc_auc_score(TRUE, P))
    assert best["low"] > 0
    assert set(best) == {"model", "method", "task", "metric", "value", "low", "high", "n"}
    assert {row["n"] for row in rows.values()} == {120}
    assert ("best", "marked") not in rows


@pytest.mark.parametrize(
    ("true", "said"),
    [([], "No description names an object"), ([True, True], "All 2 mentions are true"), ([False], "are hallucinated")],
)
def test_mentions_that_nothing_can_be_learnt_from_are_refused(true: list[bool], said: str) -> None:
    with pytest.raises(DataError, match=said):
        Drawn([0] * len(true), true)


def test_a_score_that_is_no_number_is_refused(drawn: Drawn) -> None:
    with pytest.raises(DataError, match="1 scores of a verifier are no numbers"):
        drawn.auroc([np.nan, *P[1:]])
