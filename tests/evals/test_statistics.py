"""Intervals and tests against scipy, against hand-computed cases, and under a simulated null."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.stats.bootstrap import Draws, bootstrap, holm, mcnemar, paired, per_picture, wilson


def mean(counts):
    return counts[..., 0] / counts[..., 1]


def with_ones(values):
    return np.stack([values, np.ones(len(values))], 1)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(pair):
    hits, n = pair
    ours = wilson(hits, n)
    theirs = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.value == hits / n


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test(fixed, broken):
    expected = stats.binomtest(fixed, fixed + broken).pvalue if fixed + broken else 1.0
    assert mcnemar(fixed, broken) == pytest.approx(expected, abs=1e-12)
    assert mcnemar(fixed, broken, mid=True) <= mcnemar(fixed, broken)


def test_mcnemar_by_hand():
    assert mcnemar(6, 2) == pytest.approx(2 * (1 + 8 + 28) / 256)
    assert mcnemar(6, 2, mid=True) == pytest.approx((2 * (1 + 8 + 28) - 28) / 256)
    assert mcnemar(5, 5) == 1.0


def test_the_bootstrap_of_a_mean_is_scipys():
    values = np.random.default_rng(4).gamma(2.0, size=120)
    ours = bootstrap(with_ones(values), mean, draws=20_000)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1)
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.015)


def test_the_paired_difference_is_scipys_permutation_and_bootstrap():
    rng = np.random.default_rng(5)
    a = rng.normal(size=60)
    b = a + rng.normal(0.18, 0.6, size=60)
    ours = paired(with_ones(b), with_ones(a), mean, draws=20_000)
    theirs = stats.permutation_test(
        (b, a), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=20_000, rng=2
    )
    assert ours.value == pytest.approx((b - a).mean())
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=0.01)
    drawn = stats.bootstrap((b - a,), np.mean, method="percentile", n_resamples=20_000, rng=1)
    assert (ours.low, ours.high) == pytest.approx(tuple(drawn.confidence_interval), abs=0.01)


def test_with_three_pictures_every_swap_can_be_counted_by_hand():
    a, b = np.array([[1.0, 1], [1, 1], [1, 1]]), np.array([[0.0, 1], [0, 1], [0, 1]])
    # 8 equally likely swaps; only all or none give a difference as large as 1
    assert paired(a, b, mean, draws=40_000).p_value == pytest.approx(2 / 8, abs=0.01)
    equal = paired(a, a, mean)
    assert (equal.value, equal.low, equal.high, equal.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_a_ratio_is_drawn_over_pictures_and_not_over_questions():
    """Six equal answers a picture carry the information of one: the interval must not shrink."""
    rng = np.random.default_rng(0)
    once = rng.integers(2, size=150).astype(float)
    six = np.stack([6 * once, np.full(150, 6.0)], 1)
    ours = bootstrap(six, mean)
    single = bootstrap(with_ones(once), mean)
    assert (ours.low, ours.high) == (single.low, single.high)
    assert ours.high - ours.low > 2 * (wilson(int(6 * once.sum()), 900).high - once.mean())


def test_two_equal_methods_differ_in_about_five_percent_of_runs():
    """Answers of a picture depend on each other, and the score is a ratio of two random counts."""
    rng = np.random.default_rng(11)
    runs, pictures, rejected, outside = 600, 80, 0, 0
    for _ in range(runs):
        hard = rng.beta(1.0, 2.0, size=pictures)
        tables = []
        for _ in range(2):
            words = rng.poisson(3.0, size=pictures) + 1
            tables.append(np.stack([rng.binomial(words, hard), words], 1))
        found = paired(*tables, mean, draws=400)
        rejected += found.p_value <= 0.05
        outside += not found.low <= 0 <= found.high
    # 95 % of such simulations lie within .05 +- .018
    assert 0.03 <= rejected / runs <= 0.07
    assert 0.03 <= outside / runs <= 0.08


def test_holm_is_the_textbook_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_rows_are_summed_by_picture():
    pictures, counts = per_picture([7, 3, 7], [[1, 0], [0, 1], [2, 5]])
    assert pictures.tolist() == [3, 7]
    assert counts.tolist() == [[0, 1], [3, 5]]


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(DataError, match="same pictures"):
        paired(np.ones((3, 2)), np.ones((4, 2)), mean)
    with pytest.raises(DataError, match="nothing to compare"):
        bootstrap(np.ones((0, 2)), mean)
    with pytest.raises(DataError, match="finite"):
        bootstrap([[np.nan, 1.0]], mean)
    with pytest.raises(DataError, match="3 of 2"):
        wilson(3, 2)
    with pytest.raises(DataError, match="two counts"):
        mcnemar(-1, 2)


def test_trainings_are_drawn_beside_pictures():
    """Every picture of a training counts alike, so all luck is that of training: the means of 3 of 3 drawn again."""
    rates = (0.2, 0.5, 0.8)
    counts = np.array([[[rate, 1.0]] * 40 for rate in rates])
    found = Draws({"trained": counts}).estimate("trained", mean)
    means = [np.mean(three) for three in product(rates, repeat=3)]
    assert found.value == pytest.approx(0.5)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5], method="inverted_cdf")))
    averaged = Draws({"trained": counts.mean(0)}).estimate("trained", mean)
    assert averaged.low == averaged.high


def test_methods_of_the_same_trainings_are_compared_training_by_training():
    rng = np.random.default_rng(0)
    counts = np.stack([np.column_stack([rng.random(30) + luck, np.ones(30)]) for luck in (0.0, 1.0, 2.0)])
    better = counts + np.array([0.1, 0.0])
    found = Draws({"ours": better, "theirs": counts, "plain": counts[0]}).difference("ours", "theirs", mean)
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


def test_one_training_is_no_training():
    counts = np.random.default_rng(0).random((30, 2)) + 0.5
    alone, several = Draws({"a": counts}), Draws({"a": counts[None]})
    assert alone.estimate("a", mean) == several.estimate("a", mean)
    with pytest.raises(DataError, match="shapes"):
        Draws({"a": counts, "b": np.stack([counts[:20]] * 3)})
