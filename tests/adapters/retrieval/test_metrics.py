"""Recall, AUROC and selection, against hand-computed values and a slow reference."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvlm_guard.adapters.evaluation.metrics import (
    Candidate,
    ranks,
    recall,
    selected,
)
from lvlm_guard.errors import KnobError

GOLDEN = np.array([[0.9, 0.1, 0.3], [0.2, 0.4, 0.5], [0.6, 0.2, 0.7]])


def test_recall_gives_the_specified_values():
    own = np.eye(3, dtype=bool)
    assert recall(ranks(GOLDEN, own), at=(1, 2)) == pytest.approx({1: 2 / 3, 2: 1})
    assert recall(ranks(GOLDEN.T, own), at=(1, 2)) == {1: 1, 2: 1}


def test_equal_scores_count_against_the_model():
    assert ranks([[0.5, 0.5, 0.5]], [[True, False, False]]).tolist() == [3]
    assert recall(ranks(np.zeros((4, 4)), np.eye(4, dtype=bool)), at=(1, 4)) == {1: 0, 4: 1}


def test_any_of_several_captions_is_a_hit_and_they_do_not_stand_in_each_others_way():
    scores = np.array([[0.9, 0.8, 0.1, 0.2], [0.3, 0.2, 0.1, 0.7]])
    own = np.array([[True, True, False, False], [False, False, True, True]])
    assert recall(ranks(scores, own), at=(1,)) == {1: 1}
    assert recall(ranks(scores.T, own.T), at=(1,)) == {1: 3 / 4}  # caption 2 prefers neither image: a tie, so no hit


@given(seed=st.integers(0, 200), queries=st.integers(1, 5), candidates=st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_ranks_equal_those_of_a_sorted_list_with_the_worst_order_of_ties(seed, queries, candidates):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (queries, candidates)) / 4
    hit = rng.random((queries, candidates)) < 0.4
    hit[np.arange(queries), rng.integers(0, candidates, queries)] = True
    expected = []
    for row, good in zip(scores, hit, strict=True):
        order = sorted(range(candidates), key=lambda i: (-row[i], good[i]))
        expected.append(1 + next(place for place, i in enumerate(order) if good[i]))
    got = ranks(scores, hit)
    assert got.tolist() == expected
    turned = rng.permutation(candidates)
    assert ranks(scores[:, turned], hit[:, turned]).tolist() == got.tolist()
    assert ranks(3 * scores - 7, hit).tolist() == got.tolist()


@given(st.integers(2, 30), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_recall_never_falls_with_k_and_is_one_at_the_gallerys_size(n, seed):
    found = recall(ranks(np.random.default_rng(seed).random((n, n)), np.eye(n, dtype=bool)), at=range(1, n + 1))
    assert list(found.values()) == sorted(found.values())
    assert found[n] == 1


@pytest.mark.parametrize(
    ("scores", "relevant", "message"),
    [
        ([[1.0, 2.0]], [[True]], "one shape"),
        ([[math.nan, 1.0]], [[True, False]], "1 scores are NaN"),
        ([[0.0, 1.0]], [[False, False]], "no relevant candidate"),
        ([1.0], [True], "one shape"),
    ],
)
def test_scores_that_have_no_order_are_refused(scores, relevant, message):
    with pytest.raises(KnobError, match=message):
        ranks(scores, relevant)


def candidate(epoch, i2t, t2i, auroc=0.8):
    ways = {"i2t": i2t, "t2i": t2i}
    figures = {
        f"{way}_r{k}": share for way, shares in ways.items() for k, share in zip((1, 5, 10), shares, strict=True)
    }
    return Candidate(epoch, figures | {"auroc": auroc, "claims": math.nan})


UNTUNED = candidate(-1, (0.27, 0.54, 0.67), (0.21, 0.45, 0.59))


def test_the_untuned_backbone_is_kept_when_training_hurts():
    worse = candidate(0, (0.20, 0.40, 0.50), (0.10, 0.30, 0.40), 0.5)
    assert selected([worse, UNTUNED]) is UNTUNED


def test_a_higher_score_does_not_help_a_candidate_that_loses_text_to_image_recall():
    tempting = candidate(3, (0.90, 0.95, 0.99), (0.20, 0.60, 0.70), 0.99)
    modest = candidate(5, (0.28, 0.55, 0.67), (0.21, 0.46, 0.59))
    assert tempting.score > modest.score > UNTUNED.score
    assert selected([UNTUNED, tempting, modest]) is modest


def test_a_higher_score_does_not_help_a_candidate_that_tells_fewer_swaps_or_claims_apart():
    worse = candidate(3, (0.90, 0.95, 0.99), (0.21, 0.60, 0.70), 0.79)
    assert worse.score > UNTUNED.score
    assert selected([UNTUNED, worse]) is UNTUNED
    plain, judged = (
        replace(one, claims=True, figures=one.figures | {"claims": auroc})
        for one, auroc in ((UNTUNED, 0.8), (candidate(1, (0.9, 0.9, 0.9), (0.9, 0.9, 0.9)), 0.7))
    )
    assert selected([plain, judged]) is plain


def test_equal_scores_keep_the_backbone_else_the_earliest_epoch():
    same = candidate(0, (0.27, 0.54, 0.67), (0.21, 0.45, 0.59))
    assert selected([same, UNTUNED]) is UNTUNED
    one, two = (candidate(e, (0.3, 0.6, 0.7), (0.3, 0.5, 0.6)) for e in (1, 2))
    assert selected([two, UNTUNED, one]) is one


def test_the_score_is_mean_recall_in_percent_plus_a_hundred_times_auroc():
    assert UNTUNED.score == pytest.approx(100 * (0.27 + 0.54 + 0.67 + 0.21 + 0.45 + 0.59) / 6 + 80)


def test_candidates_that_can_not_be_compared_are_refused():
    with pytest.raises(KnobError, match="untuned backbone"):
        selected([candidate(0, (1, 1, 1), (1, 1, 1))])
    with pytest.raises(KnobError, match="don't compare"):
        selected([UNTUNED, candidate(0, (1, 1, 1), (1, 1, 1), math.nan)])
