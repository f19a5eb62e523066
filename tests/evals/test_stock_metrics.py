"""Scores that are no means: a number for each sample whose mean is the score and whose spread is the score's."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import registry as kinds
from lvlm_guard.evals.metrics.stock import spread
from lvlm_guard.evals.stats import score as scoring
from lvlm_guard.evals.stats.results import find, long_rows


def precision(pairs):
    said = [truth for truth, answer in pairs if answer]
    return sum(said) / len(said) if said else 0


def total_share(pairs):
    return sum(a for a, _ in pairs) / sum(b for _, b in pairs) * 100


answers = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 5)), min_size=2, max_size=30)


@settings(max_examples=60, deadline=None)
@given(answers)
def test_the_mean_of_the_numbers_is_the_score_whatever_the_pictures(drawn):
    pairs = [(truth, said) for truth, said, _ in drawn]
    found = spread(precision, pairs, [str(picture) for *_, picture in drawn])
    assert math.fsum(found) / len(found) == pytest.approx(precision(pairs), abs=1e-12)


def test_a_score_that_is_a_mean_keeps_its_own_numbers():
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    assert spread(mean, [0.0, 1.0, 1.0], ["a", "a", "b"]) == [0.0, 1.0, 1.0]
    percent = lambda rows: 100 * sum(row["score"] for row in rows) / len(rows)  # noqa: E731
    assert spread(percent, [{"score": 1.0}, {"score": 0.0}], ["a", "b"]) == [100.0, 0.0]


def test_a_ratio_has_the_jackknife_variance_of_its_pictures():
    rng = np.random.default_rng(5)
    whole = rng.integers(1, 9, 40)
    pairs = [(int(rng.integers(0, n + 1)), int(n)) for n in whole]
    found = np.array(spread(total_share, pairs, [str(i) for i in range(40)]))
    without = np.array([total_share(pairs[:i] + pairs[i + 1 :]) for i in range(40)])
    jackknife = 39 / 40 * ((without - without.mean()) ** 2).sum()  # Efron and Stein, 1981
    assert found.var(ddof=1) / 40 == pytest.approx(jackknife, rel=1e-9)


def test_the_interval_is_that_of_the_score_over_redrawn_pictures():
    rng = np.random.default_rng(7)
    pictures, pairs = [], []
    for picture in range(120):
        hard = rng.random()
        for _ in range(int(rng.integers(2, 7))):
            truth = bool(rng.random() < 0.5)
            pictures.append(str(picture))
            pairs.append((truth, truth if rng.random() > 0.4 * hard else not truth))
    numbers = spread(precision, pairs, pictures)
    samples = [
        {"task": "t", "key": str(i), "picture": p, "rows": [], "answers": {"a": [""]}, "metrics": {"a": {"m": n}}}
        for i, (p, n) in enumerate(zip(pictures, numbers, strict=True))
    ]
    measured = scoring.measure(samples, [{"name": "t", "kind": "stock"}], [{"name": "a"}])
    row = find(long_rows("m", measured, "a"), "a", "t", "m")
    of = {p: [pair for pair, q in zip(pairs, pictures, strict=True) if q == p] for p in dict.fromkeys(pictures)}
    names = list(of)
    drawn = [
        precision([pair for i in rng.integers(0, len(names), len(names)) for pair in of[names[i]]]) for _ in range(2000)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert row["value"] == pytest.approx(precision(pairs), abs=1e-12)
    assert row["high"] - row["low"] == pytest.approx(high - low, rel=0.12)
    assert row["low"] == pytest.approx(low, abs=0.015)
    assert "stock" in kinds.KINDS


def test_a_score_that_is_not_defined_has_no_numbers():
    assert all(math.isnan(number) for number in spread(total_share, [(0, 0), (0, 0)], ["a", "b"]))
    found = spread(total_share, [(1, 2), (0, 0)], ["a", "b"])  # without the first picture it is not defined
    assert sum(found) / 2 == pytest.approx(50)


def test_a_score_that_cant_be_had_here_is_refused():
    with pytest.raises(DataError, match="command line"):
        spread(lambda results, args: 0.0, [1], ["a"])
    with pytest.raises(DataError, match="no number"):
        spread(lambda results: {"a": 1}, [1], ["a"])
