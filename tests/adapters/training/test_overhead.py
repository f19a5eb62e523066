"""The command that times the loop against a bare one."""

from __future__ import annotations

import json

import pytest

from embedded_training.overhead import main

pytestmark = pytest.mark.slow


def test_the_loop_is_timed_beside_a_bare_one_on_both_clocks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--steps", "5", "--blocks", "2", "--batch", "8", "--width", "16", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["clock"] for row in rows] == ["processor", "wall"]
    for row in rows:
        assert row["n"] == 2
        assert row["low"] <= row["value"] <= row["high"]
        # begun and ended for five steps alone ours is slower, but not by an order
        assert 0.5 < row["value"] < 20
        assert row["samples_per_second"] > 0
