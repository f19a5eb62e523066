"""Rules for CI say which difference broke them, go by roles, and are refused where they could never break."""

from __future__ import annotations

import operator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from results import change, row
from runs import pope, saved

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.report.compare import compare
from lvlm_guard.evals.report.fail_if import fail_if

GREEDY = row("pope_random", "greedy", "accuracy", 0.8)
ROWS = [
    GREEDY,
    row("pope_random", "agla", "accuracy", 0.78),
    change("pope_random", "agla", "accuracy", -0.02, spread=0.01, p=0.02),
    change("pope_popular", "agla", "accuracy", 0.03),
    change("pope_random", "vote", "accuracy", 0.01),
    change("pope_random", "sample", "accuracy", -0.2),
    change("pope_random", "agla-random", "accuracy", -0.3),
    change("pope_random", "matcher", "accuracy", -0.4),
    change("chair", "agla", "chair_i", 0.04),
    change("chair", "agla", "chair_i@64", 0.05, limit=64),
    change("pope_random", "agla", "accuracy", -0.5, baseline="tilt"),
]


def test_a_rule_that_holds_says_what_broke_it() -> None:
    assert fail_if("accuracy_diff<-0.01")(ROWS) == (
        "accuracy_diff<-0.01 holds for agla − greedy on pope_random: accuracy −.020 [−.030, −.010], p=.020."
    )


def test_a_rule_that_holds_for_nothing_says_nothing() -> None:
    assert fail_if("accuracy_diff<-0.05")(ROWS) is None


def test_differences_from_controls_are_no_differences_of_the_run() -> None:
    assert fail_if("accuracy_diff<-0.4")(ROWS) is None


@pytest.mark.parametrize("name", ["agla-random, clip", "matcher, clip", "prompt-no", "sample-matched-0.7", "x"])
@pytest.mark.parametrize("role", ["plain", "control", "matcher"])
def test_whatever_a_control_is_called_it_is_held_to_a_rule_only_where_it_is_named(name: str, role: str) -> None:
    rows = [GREEDY, change("pope_random", "agla", "accuracy", 0.0)]
    rows.append(change("pope_random", name, "accuracy", -0.3, role=role))
    assert fail_if("accuracy_diff<-0.1")(rows) is None
    assert f"{name} − greedy" in (fail_if(f"{name}:accuracy_diff<-0.1")(rows) or "")
    rows[-1] |= {"role": "method"}
    assert f"{name} − greedy" in (fail_if("accuracy_diff<-0.1")(rows) or "")


def test_an_adapter_is_held_to_a_rule() -> None:
    assert fail_if("accuracy_diff<0")([GREEDY, change("pope_random", "tuned", "accuracy", -0.1, role="adapter")])


def test_a_rule_can_be_of_one_row_task_of_one_decoder_and_of_a_token_limit() -> None:
    assert fail_if("accuracy_diff>0.02@pope_random")(ROWS) is None
    assert "pope_popular" in (fail_if("accuracy_diff>0.02@pope_popular")(ROWS) or "")
    assert fail_if("vote:accuracy_diff<0")(ROWS) is None
    assert "chair_i +.040" in (fail_if("agla:chair_i_diff>0.02@chair")(ROWS) or "")
    assert "+.050" in (fail_if("chair_i@64_diff>0.02@chair")(ROWS) or "")


@given(st.sampled_from(["<", "<=", ">", ">="]), st.integers(-30, 30), st.integers(-30, 30))
def test_a_rule_holds_exactly_where_its_sign_does(sign: str, value: int, bound: int) -> None:
    signs = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
    rows = [GREEDY, change("pope_random", "agla", "accuracy", value / 100)]
    said = fail_if(f"accuracy_diff{sign}{bound / 100}")(rows)
    assert (said is not None) == signs[sign](value / 100, bound / 100)


def test_a_sweep_point_can_be_named() -> None:
    rows = [GREEDY, change("pope_random", "agla[alpha=1,beta=0.1]", "accuracy", -0.2)]
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
        fail_if("accuracy_diff<0")([GREEDY])
    with pytest.raises(DataError, match="only controls were compared"):
        fail_if("accuracy_diff<0")([GREEDY, change("pope_random", "sample", "accuracy", -0.2)])
    empty = change("pope_random", "agla", "accuracy", 0.0) | {"value": None}
    with pytest.raises(DataError, match="agla − greedy has no accuracy on pope_random"):
        fail_if("accuracy_diff<0")([GREEDY, empty])


def test_a_rule_reads_the_differences_of_a_comparison_of_two_runs(tmp_path: Path) -> None:
    labels = ["yes", "no"] * 20
    saved(tmp_path / "a", pope(labels), {"greedy": labels, "agla": labels, "sample": labels})
    saved(tmp_path / "b", pope(labels), {"greedy": labels, "agla": ["no"] * 8 + labels[8:], "sample": ["no"] * 40})
    rows = compare(tmp_path / "a", tmp_path / "b").rows
    told = fail_if("accuracy_diff<-0.05")(rows) or ""
    assert "agla − agla on pope_random: accuracy −.100" in told
    assert "sample" not in told
    assert "sample − sample" in (fail_if("sample:accuracy_diff<-0.05")(rows) or "")
    assert fail_if("greedy:accuracy_diff<0")(rows) is None


def test_a_rule_reads_the_rows_of_a_run_as_they_are_saved(tmp_path: Path) -> None:
    labels = ["yes", "no"] * 20
    run = saved(tmp_path / "a", pope(labels), {"greedy": labels, "agla": ["no"] * 8 + labels[8:]})
    assert "agla − greedy on pope_random: accuracy −.100" in (fail_if("accuracy_diff<-0.05")(run.results.rows) or "")
