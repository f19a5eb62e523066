"""What a request carries to the engine reads back as the method that was asked for, or is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_guard.errors import GuardError, KnobError
from lvlm_guard.evals.decoders.published import AGLAOfficial
from lvlm_guard.methods import AGLA, APC, VCD, Vote
from lvlm_guard.serve.engine.arguments import method_of, request_arguments, view_arguments
from lvlm_guard.serve.errors import ServeError

ALPHA, BETA = st.floats(0, 100), st.floats(0, 1)


@given(st.one_of(st.builds(AGLA, ALPHA, BETA), st.builds(VCD, ALPHA, BETA), st.builds(APC, BETA)))
def test_a_method_reads_back_with_its_knobs(method: Any) -> None:
    assert method_of(request_arguments(method)) == method


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (None, None),
        ({}, None),
        ({"of_another_plugin": 1}, None),
        ({"guard": "vote", "guard_lam": 1.0, "guard_scores": "..."}, None),  # a processor of its own
        ({"guard": "agla"}, AGLA()),
        ({"guard": "vcd", "guard_alpha": 2}, VCD(alpha=2)),
        ({"guard": "apc", "guard_beta": 0.2}, APC(0.2)),
    ],
)
def test_what_is_not_given_has_its_default(extra: dict[str, Any] | None, expected: Any) -> None:
    assert method_of(extra) == expected


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"guard": "algA"}, "Did you mean 'agla'"),
        ({"guard": 1}, "No guard 1 is served"),
        ({"guard_alpha": 1.0}, "guard_alpha comes without guard"),
        ({"guard": "apc", "guard_alpha": 1.0}, "'guard_alpha' is no knob of apc"),
        ({"guard": "agla", "guard_mask": "..."}, "'guard_mask' is no knob of agla"),
        ({"guard": "agla", "guard_alpha": "2"}, "give a number"),
        ({"guard": "agla", "guard_alpha": True}, "give a number"),
        ({"guard": "agla", "guard_alpha": [1.0]}, "give a number"),
    ],
)
def test_an_argument_that_means_nothing_is_refused(extra: dict[str, Any], said: str) -> None:
    with pytest.raises(GuardError, match=said):
        method_of(extra)


@pytest.mark.parametrize(
    "knobs", [{"guard_alpha": -1}, {"guard_alpha": float("inf")}, {"guard_alpha": float("nan")}, {"guard_beta": 1.5}]
)
def test_a_knob_out_of_range_is_refused(knobs: dict[str, float]) -> None:
    with pytest.raises(KnobError):
        method_of({"guard": "agla", **knobs})


def test_a_method_that_the_twin_engine_does_not_have_is_refused() -> None:
    with pytest.raises(ServeError, match="no method 'vote'"):
        request_arguments(Vote())
    with pytest.raises(ServeError, match="no method 'agla-official'"):
        request_arguments(AGLAOfficial())


def test_the_second_views_are_told_by_the_method() -> None:
    assert view_arguments(AGLA(), ["one"]) == {"guard_mask": "one"}
    assert view_arguments(AGLA(), ["one", "two"]) == {"guard_mask": ["one", "two"]}
    assert view_arguments(VCD(noise_step=400, seed=7)) == {"guard_noise": {"step": 400, "seed": 7}}
    assert view_arguments(APC()) == {}
    with pytest.raises(ServeError, match="mask for each picture"):
        view_arguments(AGLA())
