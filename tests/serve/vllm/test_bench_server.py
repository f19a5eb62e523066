"""vLLM's benchmark before the real front, with an engine behind it whose pace is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from front_server import serving
from measured_server import Engine, measured

from lvlm_guard import embedded
from lvlm_guard.bench import server as bench
from lvlm_guard.errors import GuardError, UnprovedError

LOAD = bench.Load(str(embedded.MODEL), side=32, words=8, tokens=6, requests=4)


def test_each_name_is_measured_in_turn_and_a_run_goes_on_from_its_file(tmp_path: Path) -> None:
    engine = Engine(pace=0.01, guarded_pace=0.02)
    with measured(engine) as url, serving(Engine(pace=0.01).app()) as ordinary:
        arms = bench.arms_of(url + "/v1", ordinary)
        assert [(arm.name, arm.guard, arm.server) for arm in arms] == [
            ("tiny", None, "guarded"), ("tiny-agla", "agla", "guarded"), ("tiny-vote", "vote", "guarded"),
            ("tiny", None, "plain"),
        ]  # fmt: skip
        records = list(bench.measure(arms, LOAD, (2,), 2, tmp_path / "run"))
        asked = len(engine.bodies)
        assert list(bench.measure(arms, LOAD, (2,), 2, tmp_path / "run"))[
            :1
        ]  # the block before the first alone is asked
        assert len(engine.bodies) == asked + 3 * 4
        with pytest.raises(GuardError, match="other settings"):
            next(bench.measure(arms[:2], LOAD, (2,), 2, tmp_path / "run"))
    assert len(records) == 2 * 4
    rows = bench.rows(records)
    ratios: dict[Any, Any] = {
        (row["method"], row["server"], row["against"]): row for row in rows if row["metric"] == "time_ratio"
    }
    assert len(ratios) == 5
    assert all(row["n"] == 8 and row["low"] is not None for row in ratios.values())
    assert ratios["agla", "guarded", "plain"]["value"] > 1.5  # three times as long a token
    prompts = [json.dumps(body["messages"]) for body in engine.bodies]
    assert len(set(prompts)) < len(prompts)  # names are asked the same
    assert {body["max_completion_tokens"] for body in engine.bodies} == {6}


def test_answers_that_are_not_counted_as_guarded_are_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    with measured(Engine()) as url:
        (_, agla, *_) = bench.arms_of(url)
        unguarded = bench.Arm("tiny", "agla", agla.url)  # a name that is answered plainly
        with pytest.raises(UnprovedError, match="counts fewer as agla"):
            next(bench.measure([unguarded], LOAD, (2,), 1))


def test_requests_that_fail_are_an_error() -> None:
    with measured(Engine(refuse_after=2)) as url, pytest.raises((GuardError, ValueError)):
        next(bench.measure(bench.arms_of(url)[:1], LOAD, (2,), 1))
    for wrong in ({"name": "none"}, {"guards": ("vcd",)}):
        with measured(Engine()) as url, pytest.raises(GuardError):
            bench.arms_of(url, **wrong)  # type: ignore[arg-type]
