"""Controls that follow from greedy's scores: against made-up logits whose outcome was computed elsewhere."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.stats.verdict import derive, olm_says_yes, threshold

GOLDEN = json.loads((Path(__file__).parents[1] / "data/benchmarks/yes_bias.json").read_text(encoding="utf-8"))
TILT = {"name": "tilt", "derive": "tilt", "role": "control", "baseline": "greedy"}
OLM = TILT | {"name": "olm", "derive": "olm"}


def rows(**columns):
    whole = [
        {
            "item": str(row["question_id"]),
            "decoder": "greedy",
            "text": row["greedy"],
            "score": row["score"],
            "mass": row["mass"],
            "truth": row["label"],
        }
        for row in GOLDEN["rows"]
    ]
    return [row | {name: column[i] for name, column in columns.items()} for i, row in enumerate(whole)]


def counts(answers):
    """TP, FP, TN, FN and unreadable, an unreadable answer being a wrong one."""
    said = [(row["text"].strip(" .").lower(), row["truth"]) for row in answers]
    told = [(text if text in ("yes", "no") else None, truth) for text, truth in said]
    pairs = [("yes", "yes"), ("yes", "no"), ("no", "no"), ("no", "yes")]
    return [told.count(pair) for pair in pairs], sum(text is None for text, _ in told)


def single(row):
    """Score and mass from one spelling each, as the published code has it."""
    odds = np.exp(row["logits"]) / np.exp(row["logits"]).sum()
    yes, no = odds[GOLDEN["yes_tokens"][0]], odds[GOLDEN["no_tokens"][0]]
    return math.log(yes / no), yes + no


def test_olm_gives_the_published_code_s_answers_from_its_two_tokens():
    scores, masses = zip(*map(single, GOLDEN["rows"]), strict=True)
    answers = derive(OLM, rows(score=scores, mass=masses), [])
    assert [row["text"] for row in answers] == [row["olm"] for row in GOLDEN["rows"]]
    expected = GOLDEN["olm"]
    assert counts(answers) == ([expected[k] for k in ("tp", "fp", "tn", "fn")], expected["unreadable"])


def test_olm_with_all_the_mass_moves_the_threshold_to_minus_ln_3_and_with_little_always_says_yes():
    scores = np.linspace(-4, 1, 2001)
    turned = olm_says_yes(scores, np.ones(2001))
    assert scores[turned].min() == pytest.approx(-math.log(3), abs=3e-3)
    assert olm_says_yes(scores, np.full(2001, 0.4)).all()
    assert not olm_says_yes(scores, np.full(2001, 0.2)).any()


@pytest.mark.parametrize(("share", "yes"), [("labels", 16), ("half", 20)])
def test_the_fitted_threshold_is_the_golden_tilt(share, yes):
    scores = np.array([row["score"] for row in GOLDEN["rows"]])
    assert threshold(scores, yes) == pytest.approx(GOLDEN[f"tilt_{share}"], abs=1e-9)
    assert (scores > threshold(scores, yes)).sum() == yes


def test_tilt_asked_of_the_items_it_was_fitted_on_has_the_matched_accuracy():
    answers = derive(TILT, rows(), rows())
    expected = GOLDEN["matched_labels"]
    assert counts(answers) == ([expected[k] for k in ("tp", "fp", "tn", "fn")], 0)
    for row, greedy in zip(answers, rows(), strict=True):
        assert row["score"] == pytest.approx(greedy["score"] - GOLDEN["tilt_labels"])
        assert (row["score"] > 0) == (row["text"] == "yes")


def test_the_threshold_comes_from_the_calibration_items_alone():
    shifted = rows(score=[row["score"] + 2 for row in GOLDEN["rows"]])
    plain, far = derive(TILT, rows(), rows()), derive(TILT, rows(), shifted)
    d = GOLDEN["tilt_labels"] + 2
    assert [row["text"] == "yes" for row in far] == [row["score"] > d for row in rows()]
    assert plain != far


@pytest.mark.parametrize("yes", [0, 1, 3, 4])
def test_all_or_no_yes_has_a_finite_threshold_too(yes):
    scores = np.array([1.0, -2.0, 0.5, 0.5])
    d = threshold(scores, yes)
    assert math.isfinite(d)
    assert (scores > d).sum() == {0: 0, 1: 1, 3: 3, 4: 4}[yes]


def test_without_calibration_items_or_scores_nothing_is_made_up():
    with pytest.raises(DataError, match="no calibration items"):
        derive(TILT, rows(), [])
    missing = [None if i == 3 else row["score"] for i, row in enumerate(GOLDEN["rows"])]
    for decoder, greedy, calibration in ((OLM, rows(score=missing), []), (TILT, rows(), rows(score=missing))):
        with pytest.raises(DataError, match="item 4 has no score"):
            derive(decoder, greedy, calibration)
    with pytest.raises(DataError, match=r"hold 0\.30 of the probability"):
        derive(OLM, rows(mass=[0.3] * 40), [])
