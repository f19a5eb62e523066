"""Rules for CI say which difference broke them, and are refused where they could never do so."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import pope, saved

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.report.compare import compare
from lvlm_guard.evals.report.compare.fail_if import fail_if


def row(method: str, value: float | None, metric: str = "accuracy", task: str = "pope_random") -> dict[str, Any]:
    known = {"model": "m", "method": method, "task": task, "metric": metric, "value": value, "n": 100}
    spread = {"low": None, "high": None} if value is None else {"low": value - 0.01, "high": value + 0.01}
    return known | spread | ({"p_value": 0.02} if "-" in method else {})


ROWS = [
    row("greedy", 0.8),
    row("agla", 0.78),
    row("agla-greedy", -0.02),
    row("agla-greedy", 0.03, task="pope_popular"),
    row("vote-greedy", 0.01),
    row("sample-greedy", -0.2),
    row("sample-matched-greedy", -0.1),
    row("agla-random-greedy", -0.3),
    row("agla-sample-sample", -0.4),
    row("agla-agla-random", -0.5),
    row("agla-greedy", 0.04, metric="chair_i", task="chair"),
]


def test_a_rule_that_holds_names_every_difference_it_holds_for() -> None:
    assert fail_if("accuracy_diff<-0.01")(ROWS) == (
        "accuracy_diff<-0.01 holds for agla-greedy on pope_random: accuracy −.020 [−.030, −.010], p=.020."
    )


def test_a_rule_that_holds_for_nothing_says_nothing() -> None:
    assert fail_if("accuracy_diff<-0.05")(ROWS) is None


def test_plain_decoding_and_controls_are_held_to_a_rule_only_where_it_names_them() -> None:
    assert "sample-greedy on pope_random" in (fail_if("sample:accuracy_diff<-0.05")(ROWS) or "")
    assert "agla-random-greedy" in (fail_if("agla-random:accuracy_diff <= -0.3")(ROWS) or "")


def test_a_rule_can_be_of_one_row_task_and_of_one_decoder() -> None:
    assert fail_if("accuracy_diff>0.02@pope_random")(ROWS) is None
    assert "pope_popular" in (fail_if("accuracy_diff>0.02@pope_popular")(ROWS) or "")
    assert fail_if("vote:accuracy_diff<0")(ROWS) is None
    assert "chair_i +.040" in (fail_if("agla:chair_i_diff>0.02@chair")(ROWS) or "")


@given(st.sampled_from(["<", "<=", ">", ">="]), st.integers(-30, 30), st.integers(-30, 30))
def test_a_rule_holds_exactly_where_its_sign_does(sign: str, value: int, bound: int) -> None:
    signs = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
    said = fail_if(f"accuracy_diff{sign}{bound / 100}")([row("agla-greedy", value / 100)])
    assert (said is not None) == signs[sign](value / 100, bound / 100)


def test_a_sweep_point_can_be_named() -> None:
    rows = [row("agla[alpha=1,beta=0.1]-greedy", -0.2)]
    assert fail_if("agla[alpha=1,beta=0.1]:accuracy_diff<-0.1")(rows)


NO_RULES = (
    *("", "accuracy<-0.01", "accuracy_diff", "accuracy_diff=0.1", "accuracy_diff<", "accuracy_diff<much", "_diff<1"),
    *("accuracy_diff<nan", "accuracy_diff<0.1@", "accuracy_diff<0.1 or f1_diff<0", ":accuracy_diff<0"),
)


@pytest.mark.parametrize("text", NO_RULES)
def test_text_that_is_no_rule_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(DataError, match=r"accuracy_diff<-0\.01 or chair_i_diff>0.02@chair"):
        fail_if(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("acuracy_diff<0", "no difference has the metric 'acuracy'. Did you mean 'accuracy'?"),
        ("accuracy_diff<0@pope_popuar", "no difference has the task 'pope_popuar'. Did you mean 'pope_popular'?"),
        ("alga:accuracy_diff<0", "no difference has the decoder 'alga'. Did you mean 'agla'?"),
    ],
)
def test_a_rule_about_what_was_not_compared_is_refused_with_the_nearest(text: str, said: str) -> None:
    with pytest.raises(DataError) as error:
        fail_if(text)(ROWS)
    assert said in str(error.value)


def test_a_rule_that_nothing_is_held_against_is_refused() -> None:
    with pytest.raises(DataError, match="nothing was compared"):
        fail_if("accuracy_diff<0")([row("greedy", 0.8)])
    with pytest.raises(DataError, match="only controls were compared"):
        fail_if("accuracy_diff<0")([row("sample-greedy", -0.2)])
    with pytest.raises(DataError, match="agla-greedy has no accuracy on pope_random"):
        fail_if("accuracy_diff<0")([row("agla-greedy", None)])


def test_a_rule_reads_the_differences_of_a_comparison_of_two_runs(tmp_path: Path) -> None:
    labels = ["yes", "no"] * 20
    a = saved(tmp_path / "a", pope(labels), {"greedy": labels, "agla": labels})
    b = saved(tmp_path / "b", pope(labels), {"greedy": labels, "agla": ["no"] * 8 + labels[8:]})
    rows = compare(a, b).rows
    assert "b:agla-a:agla on pope_random: accuracy −.100" in (fail_if("accuracy_diff<-0.05")(rows) or "")
    assert fail_if("greedy:accuracy_diff<0")(rows) is None


def test_a_rule_reads_the_rows_of_a_run_as_they_are_saved(tmp_path: Path) -> None:
    labels = ["yes", "no"] * 20
    run = saved(tmp_path / "a", pope(labels), {"greedy": labels, "agla": ["no"] * 8 + labels[8:]})
    assert "agla-greedy on pope_random: accuracy −.100" in (fail_if("accuracy_diff<-0.05")(run.run["rows"]) or "")
