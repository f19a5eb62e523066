"""Verdicts and re-ranking: the specification's golden figures, and what must always hold."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_guard.errors import KnobError
from lvlm_guard.verify import Candidate, Thresholds, rerank
from lvlm_guard.verify.verdict import absolute, against_swaps

NAMED = [(f"swap {i}", value) for i, value in enumerate((0.28, 0.24, 0.30))]
numbers = st.floats(-1, 1)


def test_the_golden_claim_that_ties_with_a_swap_has_no_margin_and_is_unsure():
    verdict = against_swaps("claim", 0.30, NAMED, 0.01)
    assert verdict.p_supported == pytest.approx(0.4677676, abs=1e-7)
    assert verdict.margin == 0
    assert (verdict.runner_up, verdict.label, verdict.kind) == ("swap 2", "unsure", "swaps")
    assert verdict.doubtful


def test_a_claim_that_its_swaps_beat_is_unsupported_and_one_that_beats_them_supported():
    assert against_swaps("claim", 0.26, NAMED, 0.01).label == "unsupported"  # .0153 under 1/4
    assert against_swaps("claim", 0.32, NAMED, 0.01).label == "supported"


def test_chance_is_one_among_claim_and_swaps():
    at = 1 / 4
    assert Thresholds().label(at, 3) == "unsure"
    assert Thresholds().label(math.nextafter(at, 0), 3) == "unsupported"
    assert Thresholds(unsupported=0.1, supported=0.2).label(0.2, 3) == "supported"


@given(numbers, st.lists(numbers, min_size=1, max_size=9), st.floats(0.005, 2), st.floats(-3, 3))
def test_a_verdict_does_not_change_where_all_similarities_move_together(own, others, temperature, shift):
    swaps = [(str(i), value) for i, value in enumerate(others)]
    moved = [(name, value + shift) for name, value in swaps]
    one, two = against_swaps("c", own, swaps, temperature), against_swaps("c", own + shift, moved, temperature)
    assert two.p_supported == pytest.approx(one.p_supported, abs=1e-9)
    assert two.margin == pytest.approx(one.margin, abs=1e-9)


def test_a_huge_difference_at_a_tiny_temperature_overflows_nowhere():
    assert against_swaps("c", -1e3, [("s", 1e3)], 1e-3).p_supported == 0
    assert against_swaps("c", 1e3, [("s", -1e3)], 1e-3).p_supported == 1


def test_without_swaps_the_matchers_own_probability_decides_and_the_verdict_says_so():
    verdict = absolute("c", 0.4)
    assert (verdict.kind, verdict.label, verdict.runner_up) == ("absolute", "unsure", None)
    assert absolute("c", 0.1).label == "unsupported"
    assert absolute("c", 0.5).label == "supported"


@pytest.mark.parametrize("pair", [(-0.1, 0.5), (0.6, 0.5), (0.1, 1.5), (math.nan, 0.5)])
def test_thresholds_out_of_range_or_order_are_refused(pair):
    with pytest.raises(KnobError, match="unsupported <= supported"):
        Thresholds(*pair)


@pytest.mark.parametrize(("swaps", "temperature"), [([], 0.01), ([("s", 0.1)], 0.0), ([("s", 0.1)], math.nan)])
def test_a_comparison_without_swaps_or_with_no_temperature_is_refused(swaps, temperature):
    with pytest.raises(KnobError, match="give at least one"):
        against_swaps("c", 0.3, swaps, temperature)


def test_alpha_one_ranks_by_the_models_probability_and_alpha_zero_by_the_matcher():
    answers = [Candidate("a", -0.5, 0.2), Candidate("b", -0.1, 0.1), Candidate("c", -0.9, 0.3)]
    assert [i for i, _ in rerank(answers, alpha=1)] == [1, 0, 2]
    assert [i for i, _ in rerank(answers, alpha=0)] == [2, 0, 1]


def test_an_answer_that_names_absent_objects_falls_behind_an_equal_one():
    absent = absolute("is there a dog in the image?", 0.05)
    answers = [Candidate("a dog", -0.5, 0.2, [absent]), Candidate("a cat", -0.5, 0.2, [absolute("cat", 0.9)])]
    assert [i for i, _ in rerank(answers)] == [1, 0]
    assert [i for i, _ in rerank(answers, penalty=0)] == [0, 1]


@given(st.lists(st.tuples(st.floats(-9, 0), numbers), min_size=1, max_size=8), st.floats(0, 1))
def test_reranking_keeps_every_answer_once_whatever_the_scale_of_either_score(pairs, alpha):
    answers = [Candidate(str(i), own, match) for i, (own, match) in enumerate(pairs)]
    order = rerank(answers, alpha)
    assert sorted(i for i, _ in order) == list(range(len(answers)))
    assert [score for _, score in order] == sorted((score for _, score in order), reverse=True)


@pytest.mark.parametrize("knobs", [{"alpha": 1.1}, {"penalty": -1}, {"alpha": math.nan}, {"penalty": math.inf}])
def test_weights_out_of_range_are_refused(knobs):
    with pytest.raises(KnobError, match="alpha is"):
        rerank([Candidate("a", 0, 0)], **knobs)


def test_no_answers_at_all_are_refused():
    with pytest.raises(KnobError, match="no answer"):
        rerank([])
