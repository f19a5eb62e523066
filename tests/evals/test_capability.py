"""A guard passes the check of capability only if all of the interval is above -2 points."""

import pytest

from lvlm_guard.evals.stats.verdict import capability


def row(**changes):
    known = {"task": "mmstar", "decoder": "agla", "baseline": "greedy", "role": "method", "metric": "average"}
    return known | {"value": -0.003, "low": -0.015, "high": 0.009} | changes


@pytest.mark.parametrize(
    ("changes", "passed"),
    [({}, True), ({"low": -0.0201}, False), ({"low": -0.02}, False), ({"low": -0.5, "value": 0.1}, False)],
)
def test_a_check_is_passed_only_by_an_interval_above_the_margin(changes, passed):
    (check,) = capability([row(**changes)], "greedy")
    assert check["passed"] is passed
    assert ("keeps what greedy can" in check["sentence"]) is passed


def test_other_rows_are_no_checks():
    others = [row(baseline=None), row(metric="math"), row(task="mmmu_val"), row(baseline="sample"), row(low=None)]
    assert list(capability(others, "greedy")) == []
