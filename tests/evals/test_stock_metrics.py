"""Scores that are no means: a number for each sample whose mean is the score and whose spread is the score's."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import scoring
from hypothesis import given, settings
from hypothesis import strategies as st

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import stock
from lvlm_guard.evals.metrics.stock import Stock, check_scorable, spread
from lvlm_guard.evals.stats.bootstrap import Draws, estimate
from lvlm_guard.evals.stats.results import find


def precision(pairs):
    said = [truth for truth, answer in pairs if answer]
    return sum(said) / len(said) if said else 0


def total_share(pairs):
    return sum(a for a, _ in pairs) / sum(b for _, b in pairs) * 100


answers = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 5)), min_size=2, max_size=30)


@settings(max_examples=60, deadline=None)
@given(answers, st.sampled_from([2, 3, 200]))
def test_the_mean_of_the_numbers_is_the_score_whatever_the_pictures_and_groups(drawn, groups):
    pairs = [(truth, said) for truth, said, _ in drawn]
    before, stock.GROUPS = stock.GROUPS, groups
    found = spread(precision, pairs, [str(picture) for *_, picture in drawn])
    stock.GROUPS = before
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


def quizzed(pictures, seed=7):
    """Pairs of precision, of pictures that are hard or easy, and the interval of pictures drawn again."""
    rng = np.random.default_rng(seed)
    names, pairs = [], []
    for picture in range(pictures):
        hard = rng.random()
        for _ in range(int(rng.integers(2, 7))):
            truth = bool(rng.random() < 0.5)
            names.append(str(picture))
            pairs.append((truth, truth if rng.random() > 0.4 * hard else not truth))
    counts = np.zeros((pictures, 2))
    for name, (truth, said) in zip(names, pairs, strict=True):
        counts[int(name)] += (truth and said, said)
    sums = Draws(pictures).sums({"a": counts})["a"]
    return names, pairs, estimate(sums[:, 0] / sums[:, 1])


@pytest.mark.parametrize(("pictures", "groups"), [(120, 200), (1200, 200), (1200, 60)])
def test_the_interval_is_that_of_the_score_over_redrawn_pictures_also_where_groups_are_left_out(
    pictures, groups, monkeypatch
):
    monkeypatch.setattr(stock, "GROUPS", groups)
    names, pairs, expected = quizzed(pictures)
    numbers = np.array(spread(precision, pairs, names))
    counts = np.zeros((pictures, 2))
    np.add.at(counts, np.array(names, int), np.stack([numbers, np.ones(len(numbers))], -1))
    sums = Draws(pictures).sums({"a": counts})["a"]
    found = estimate(sums[:, 0] / sums[:, 1])
    assert found.value == pytest.approx(precision(pairs), abs=1e-12)
    assert found.high - found.low == pytest.approx(expected.high - expected.low, rel=0.12 if groups == 200 else 0.25)


def test_a_slow_score_is_left_out_in_few_groups_and_never_refused(monkeypatch):
    """It used to be: after all answers were paid for, and again at every retry."""
    called = []

    def slow(pairs):
        called.append(len(pairs))
        return precision(pairs)

    monkeypatch.setattr(stock, "PATIENCE", 0.0)
    names, pairs, _ = quizzed(300)
    found = spread(slow, pairs, names)
    assert len(called) == 1 + stock.FEWEST
    assert np.mean(found) == pytest.approx(precision(pairs), abs=1e-12)


def test_a_score_that_is_not_defined_has_no_numbers():
    assert all(math.isnan(number) for number in spread(total_share, [(0, 0), (0, 0)], ["a", "b"]))
    found = spread(total_share, [(1, 2), (0, 0)], ["a", "b"])  # without the first picture it is not defined
    assert sum(found) / 2 == pytest.approx(50)


def test_a_score_that_needs_the_command_line_is_refused_before_anything_is_asked():
    source = SimpleNamespace(aggregation=lambda: {"gpt": lambda results, args: 0.0})
    with pytest.raises(DataError, match="task mmbench can't be scored here: its gpt needs the arguments"):
        check_scorable("mmbench", source)
    check_scorable("amber", SimpleNamespace(aggregation=lambda: {"chair": precision, "mean": np.mean}))
    with pytest.raises(DataError, match="no number"):
        spread(lambda results: {"a": 1}, [1], ["a"])


@pytest.fixture
def chairs(monkeypatch):
    """A task whose score of an answer is its share of the word "cat", and which lmms-eval says is better when lower."""

    def results(source, keys, texts):
        found = {"amber_chair": [(text.count("cat"), len(text.split())) for text in texts]}
        return found | {"first": [1.0 if key == "0" else None for key in keys]}

    monkeypatch.setattr(stock, "stock_results", results)
    aggregation = {"amber_chair": total_share, "first": lambda values: sum(values) / len(values)}
    monkeypatch.setattr(Stock, "source", SimpleNamespace(aggregation=lambda: aggregation))
    return {"about": {"metrics": {"amber_chair": False}}}


def test_which_way_is_better_is_what_lmms_eval_says(chairs):
    items = [scoring.item(i, i, "", kind="stock") for i in range(12)]
    texts = {"greedy": ["a cat and a cat"] * 12, "agla": ["a cat and a dog"] * 6 + ["a cat and a cat"] * 6}
    rows = scoring.of_texts(items, texts, kind="stock", task=chairs, draws=200)["rows"]
    change = find(rows, "agla", "quiz", "amber_chair", "greedy")
    assert (change["value"], change["direction"]) == (pytest.approx(-10.0), "lower")
    assert change["high"] < 0
    assert find(rows, "agla", "quiz", "words")["direction"] == ""
    assert find(rows, "agla", "quiz", "first")["n"] == 1  # the only one that has it


def test_a_metric_that_is_not_defined_for_some_decoder_is_left_out_of_all_and_told(chairs):
    items = [scoring.item(i, i, "yes", kind="stock") for i in range(4)]
    allowed = scoring.Allowed(empty=1)
    found = scoring.of_texts(
        items, {"greedy": ["a cat"] * 4, "agla": [" "] * 4}, kind="stock", task=chairs, allowed=allowed
    )
    assert find(found["rows"], "greedy", "quiz", "amber_chair") is None
    assert find(found["rows"], "agla", "quiz", "unreadable")["value"] == 1.0
    assert any("amber_chair is not defined for some decoder's answers" in warning for warning in found["warnings"])
