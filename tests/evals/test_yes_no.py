"""Ranked figures of yes/no questions against golden values, scikit-learn, and copies written out."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score, recall_score, roc_auc_score

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.metric import Batch, Items
from lvlm_guard.evals.metrics.ranking import Ranking, one_wayness
from lvlm_guard.evals.metrics.yes_no import YesNo, said_of

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "benchmarks" / "yes_bias.json").read_text())
SCORES = [row["score"] for row in GOLDEN["rows"]]
YES = [row["label"] == "yes" for row in GOLDEN["rows"]]


def rank(scores, yes, half=False):
    """Return the figures of one set of questions, each [1]."""
    return Ranking(scores, yes)(np.ones((1, len(scores))), half)


def test_the_golden_ranking_comes_out_to_the_last_digit():
    labels, half = rank(SCORES, YES), rank(SCORES, YES, half=True)
    assert labels.auroc[0] == pytest.approx(GOLDEN["auroc"], abs=1e-15)
    for found, gold, tilt in ((labels, "matched_labels", "tilt_labels"), (half, "matched_half", "tilt_half")):
        gold_n = GOLDEN[gold]
        assert (found.k[0], found.tp[0], found.tn[0]) == (gold_n["k"], gold_n["tp"], gold_n["tn"])
        assert found.k[0] - found.tp[0] == gold_n["fp"]
        assert found.accuracy[0] == pytest.approx(gold_n["accuracy"], abs=1e-15)
        assert found.tilt[0] == pytest.approx(GOLDEN[tilt], abs=1e-15)


def test_ties_across_the_border_are_shared_out():
    case = GOLDEN["tie_case"]
    found = rank(case["scores"], [label == "yes" for label in case["labels"]])
    n_no = case["labels"].count("no")
    assert (found.k[0], found.tp[0], found.tn[0]) == (case["k"], case["tp"], case["tn"])
    assert (n_no - found.tn[0], case["k"] - found.tp[0]) == (case["fp"], case["fp"])
    assert (found.accuracy[0], found.auroc[0]) == (case["accuracy"], case["auroc"])
    assert found.tilt[0] == 1.0  # the border lies within the tie


def test_scores_after_a_cut_rank_at_the_ends():
    case = GOLDEN["cut_case"]
    found = rank([float(score) for score in case["scores"]], [label == "yes" for label in case["labels"]])
    assert found.auroc[0] == case["auroc"]
    assert np.isnan(rank([-np.inf, np.inf], [False, True]).tilt[0])
    assert rank([-np.inf, 1.0], [False, True]).tilt[0] == -np.inf


def counted(answers, labels, metric=YesNo):
    items = Items([str(i) for i in range(len(labels))], ["p"] * len(labels), list(labels))
    made = metric({"name": "quiz"}, items)
    batch = Batch(np.arange(len(labels)), answers, np.ones(len(labels), bool), [None] * len(labels))
    return made, made.count(batch)


@pytest.mark.parametrize("said", ["greedy", "olm"])
def test_golden_answers_have_their_counts_and_ratios(said):
    metric, counts = counted([row[said] for row in GOLDEN["rows"]], [row["label"] for row in GOLDEN["rows"]])
    gold, total = GOLDEN[said], counts.sum(0)
    assert dict(zip(("tp", "fp", "tn", "fn"), total[:4], strict=True)) == {k: gold[k] for k in ("tp", "fp", "tn", "fn")}
    for name in ("accuracy", "precision", "recall", "f1", "balanced_accuracy", "yes_ratio"):
        assert metric.scores()[name].of(total) == pytest.approx(gold[name], abs=1e-15), name
    assert metric.scores()["unreadable"].of(total) * 40 == gold["unreadable"]


def test_thresholding_the_score_gives_the_golden_counts():
    answers = ["Yes" if score > 0 else "No" for score in SCORES]
    metric, counts = counted(answers, [row["label"] for row in GOLDEN["rows"]])
    assert metric.scores()["accuracy"].of(counts.sum(0)) == GOLDEN["at_zero"]["accuracy"] == 0.6
    assert metric.scores()["yes_ratio"].of(counts.sum(0)) == GOLDEN["at_zero"]["yes_ratio"] == 0.7


quarters = st.integers(-40, 40).map(lambda quarter: quarter / 4)  # a shift of them is exact, so ties stay ties
questions = st.lists(st.tuples(quarters, st.booleans()), min_size=2, max_size=60)


@settings(deadline=None)
@given(questions, quarters, st.booleans())
def test_a_constant_on_every_yes_logit_changes_neither_auroc_nor_matched_accuracy(drawn, shift, half):
    scores, yes = (np.array(part) for part in zip(*drawn, strict=True))
    one, other = rank(scores, yes, half), rank(scores + shift, yes, half)
    for name in ("auroc", "accuracy", "tp", "tn"):
        assert np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True), name
    assert np.array_equal(one.tilt + shift, other.tilt, equal_nan=True)


@settings(deadline=None)
@given(questions)
def test_auroc_is_that_of_scikit_learn_and_matched_accuracy_that_of_every_order_of_the_ties(drawn):
    scores, yes = (np.array(part) for part in zip(*drawn, strict=True))
    assume(yes.any() and not yes.all())
    found = rank(scores, yes)
    assert found.auroc[0] == pytest.approx(roc_auc_score(yes, scores), abs=1e-12)
    k = int(yes.sum())
    border = np.sort(scores)[::-1][k - 1]
    above, tied = scores > border, scores == border
    tp = yes[above].sum() + (k - above.sum()) / tied.sum() * yes[tied].sum()
    assert found.tp[0] == pytest.approx(tp, abs=1e-12)
    assert found.k[0] - found.tp[0] == pytest.approx(yes.sum() - tp)  # false positives = false negatives: break-even


@settings(deadline=None)
@given(questions, st.integers(0, 2**32 - 1))
def test_a_picture_drawn_twice_is_the_same_as_its_questions_written_twice(drawn, seed):
    scores, yes = (np.array(part) for part in zip(*drawn, strict=True))
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 5, len(scores))
    weights = rng.integers(0, 3, (4, 5)).astype(float)
    found = Ranking(scores, yes, pictures)(weights)
    for draw, weight in enumerate(weights):
        times = weight[pictures].astype(int)
        if not times.sum():
            assert np.isnan(found.auroc[draw])
            continue
        written = rank(np.repeat(scores, times), np.repeat(yes, times))
        for name in ("auroc", "accuracy", "k", "tp", "tilt"):
            ours, theirs = getattr(found, name)[draw], getattr(written, name)[0]
            assert ours == pytest.approx(theirs, abs=1e-12, nan_ok=True), name


def test_without_one_of_the_classes_there_is_no_ranking_and_no_number_must_be_missing():
    alone = rank([0.1, 0.2], [True, True])
    assert np.isnan([alone.auroc[0], alone.accuracy[0], alone.tilt[0]]).all()
    with pytest.raises(DataError, match="1 of 2 scores"):
        rank([0.1, np.nan], [True, False])


said = st.lists(st.tuples(st.sampled_from(["Yes", "no.", "maybe", ""]), st.booleans()), min_size=1, max_size=40)


@pytest.mark.slow
@given(said, st.sampled_from(["yes", "no"]))
def test_scores_of_answers_are_scikit_learns_for_either_positive_class(drawn, positive):
    class Ours(YesNo):
        pass

    Ours.positive = positive
    answers, labels = [text for text, _ in drawn], ["yes" if yes else "no" for _, yes in drawn]
    metric, counts = counted(answers, labels, Ours)
    read = [{"Yes": "yes", "no.": "no"}.get(text, "?") for text in answers]
    assert [{1: "yes", 0: "no", -1: "?"}[code] for code in said_of(counts).tolist()] == read
    # an unreadable answer is of a third class
    told = {"labels": [positive], "average": "macro", "zero_division": 0}
    for name, theirs in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        assert metric.scores()[name].of(counts.sum(0)) == pytest.approx(theirs(labels, read, **told)), name
    if len(set(labels)) == 2 and set(read) <= {"yes", "no"}:
        expected = balanced_accuracy_score(labels, read)
        assert metric.scores()["balanced_accuracy"].of(counts.sum(0)) == pytest.approx(expected)


def test_an_unreadable_answer_counts_against_its_class_in_balanced_accuracy():
    metric, counts = counted(["Yes", "?", "No", "No"], ["yes", "yes", "no", "no"])
    assert metric.scores()["balanced_accuracy"].of(counts.sum(0)) == (0.5 + 1.0) / 2
    assert np.isnan(counted(["No"], ["no"])[0].scores()["balanced_accuracy"].of(counts[2:3].sum(0)))


def test_one_wayness_of_a_tilt_is_one_and_of_reranking_zero():
    assert one_wayness([7, 3, 0], [0, 3, 0])[:2].tolist() == [1.0, 0.0]
    assert np.isnan(one_wayness(0, 0))
