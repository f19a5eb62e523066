"""AUROC, calibration and marks of verifiers, against independent computations and by hand."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, precision_score, recall_score, roc_auc_score

from lvlm_guard.evals.decoders.decoder import Decoder
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.spec.answers import Answer, table_of
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.studies.verify import results_of
from lvlm_guard.evals.studies.verify.judges import CALIBRATED, probable

RNG = np.random.default_rng(7)
TRUE = RNG.random(120) < 0.7
PICTURES = np.sort(RNG.integers(0, 40, 120))
P = np.clip(np.round(0.35 * TRUE + RNG.random(120) * 0.6, 1), 0.001, 0.999)  # rounded, so that there are ties
Runs = dict[str, list[Any]]


def rows(runs: Runs, true: Any = TRUE, pictures: Any = PICTURES) -> dict[tuple[str, str | None, str], Any]:
    """Rows by (verifier, baseline, metric); of each verifier a list of trainings, each (probabilities, marks)."""
    items = [
        Item(str(k), str(p), "", (), truth="yes" if t else "no", rows=("chair",))
        for k, (t, p) in enumerate(zip(true, pictures, strict=True))
    ]
    verifiers, answers = [], []
    for name, each in runs.items():
        role: Any = "reference" if name == CALIBRATED else "matcher"
        places = tuple(map(str, range(len(each))))
        verifiers.append(Decoder(name, "", (), role=role, seeds=len(each), matchers=places))
        for seed, (p, marks) in enumerate(each):
            for item, value, mark in zip(items, p, marks, strict=True):
                said = probable(float(value), bool(mark))
                known = {"task": "mentions", "split": "test", "item": item.key, "picture": item.picture, "role": role}
                answers.append(Answer(said.text, decoder=name, seed=seed, score=said.score, mass=1.0, **known))
    task = EvalTask("mentions", "mentions", items, 8)
    found = results_of(task, table_of(answers), verifiers, [name for name in runs if name != CALIBRATED])
    return {(row["decoder"], row["baseline"], row["metric"]): row for row in found["rows"]}


@pytest.fixture(scope="module")
def found() -> Any:
    marks = P < 0.5
    best = np.where(TRUE, 0.9, 0.1)
    return rows({CALIBRATED: [(P, marks)], "same": [(P, marks)] * 5, "best": [(best, np.zeros(120, bool))]})


def test_figures_are_those_of_scikit_learn_with_ties(found: Any) -> None:
    marks = P < 0.5
    expected = {
        "auroc": roc_auc_score(TRUE, P),
        "brier": brier_score_loss(TRUE, P),
        "marked": marks.mean(),
        "mark_precision": precision_score(~TRUE, marks),
        "mark_recall": recall_score(~TRUE, marks),
    }
    for metric, value in expected.items():
        assert found[CALIBRATED, None, metric]["value"] == pytest.approx(value, abs=1e-6), metric
    assert found["greedy", None, "hallucinated"]["value"] == pytest.approx((~TRUE).mean())
    assert {row["n"] for row in found.values()} == {120}


def test_a_difference_is_paired_so_that_equal_verifiers_differ_by_nothing_at_all(found: Any) -> None:
    same, best = found["same", CALIBRATED, "auroc"], found["best", CALIBRATED, "auroc"]
    assert (same["value"], same["low"], same["high"]) == pytest.approx((0, 0, 0), abs=1e-12)
    assert best["value"] == pytest.approx(1 - roc_auc_score(TRUE, P))
    assert best["low"] > 0
    assert best["bold"]
    assert same["direction"] == "higher"
    assert found["best", CALIBRATED, "brier"]["direction"] == "lower"


def test_marks_that_are_never_set_have_no_precision(found: Any) -> None:
    assert ("best", None, "mark_precision") not in found
    assert found["best", None, "mark_recall"]["value"] == 0


def test_two_trainings_are_averaged_and_no_difference_of_them_is_called_clear() -> None:
    best = np.where(TRUE, 0.9, 0.1)
    blind = np.full(120, 0.5)
    pair = rows({CALIBRATED: [(blind, blind > 1)], "two": [(best, best < 0), (best, best < 0), (blind, best < 0)]})
    assert pair["two", None, "auroc"]["value"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert pair["two", CALIBRATED, "auroc"]["value"] == pytest.approx(1 / 3)
    assert not pair["two", CALIBRATED, "auroc"]["bold"]


def test_the_calibration_error_of_two_bins_is_what_a_hand_computes() -> None:
    p, true = np.array([0.65, 0.65, 0.95, 0.95]), [True, False, True, True]
    error = rows({CALIBRATED: [(p, p < 0.5)]}, true, [0, 0, 1, 1])[CALIBRATED, None, "calibration_error"]
    # bin .6: two mentions, one true: gap .15; bin .9: two, both true: gap .05
    assert error["value"] == pytest.approx((2 * 0.15 + 2 * 0.05) / 4, abs=1e-6)


@pytest.mark.parametrize(
    ("true", "said"),
    [([], "No description names an object"), ([True, True], "All 2 mentions are true"), ([False], "are hallucinated")],
)
def test_mentions_that_nothing_can_be_learnt_from_are_refused(true: list[bool], said: str) -> None:
    p = np.full(len(true), 0.5)
    with pytest.raises(DataError, match=said):
        rows({CALIBRATED: [(p, p > 1)]}, true, [0] * len(true))
