import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from lvlm_guard.bench.intervals import median_interval, median_ratio

TIMES = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40)


def test_the_interval_agrees_with_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(3).lognormal(size=24)
    value, low, high = median_interval(values)
    theirs = bootstrap((values,), np.median, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1))
    assert value == np.median(values)
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.05)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.05)


@given(TIMES, st.floats(0.1, 10))
def test_a_guard_that_costs_a_constant_factor_has_that_ratio_and_no_spread(plain: list[float], factor: float) -> None:
    value, low, high = median_ratio([factor * t for t in plain], plain)
    assert value == pytest.approx(factor)
    if len(plain) > 1:
        assert low == pytest.approx(factor)
        assert high == pytest.approx(factor)
    else:
        assert low is None
        assert high is None


@given(st.lists(st.tuples(st.floats(0.01, 10), st.floats(0.01, 10)), min_size=2, max_size=30))
def test_the_value_lies_in_its_interval_and_the_interval_in_the_data(pairs: list[tuple[float, float]]) -> None:
    ratios = [a / b for a, b in pairs]
    value, low, high = median_ratio([a for a, _ in pairs], [b for _, b in pairs])
    assert low is not None
    assert high is not None
    assert min(ratios) <= low <= high <= max(ratios)
    assert value == pytest.approx(float(np.median(ratios)))


def test_one_slow_block_does_not_move_the_median() -> None:
    plain = [1.0] * 11
    assert median_ratio([1.2] * 10 + [50.0], plain)[0] == pytest.approx(1.2)


def test_the_interval_is_the_same_every_time() -> None:
    assert median_interval([1.0, 2.0, 5.0]) == median_interval([1.0, 2.0, 5.0])


@pytest.mark.parametrize(
    ("guarded", "plain"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0]), ([1.0, 1.0], [1.0, -1.0])]
)
def test_times_that_give_no_ratio_are_refused(guarded: list[float], plain: list[float]) -> None:
    with pytest.raises(ValueError, match=r"at least one|clock"):
        median_ratio(guarded, plain)


def test_the_interval_of_one_value_is_none() -> None:
    value, low, high = median_interval([2.5])
    assert (value, low, high) == (2.5, None, None)
    assert not math.isnan(value)
