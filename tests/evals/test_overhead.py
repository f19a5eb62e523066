"""The overhead is measured on the same questions, one a picture, and told in rows; how large it is, is no test."""

import pytest

from docs.measure_overhead import overhead
from lvlm_guard.evals.infer.generate import prepare_run
from lvlm_guard.evals.spec.settings import Settings


@pytest.mark.slow
def test_each_task_and_decoder_has_its_ratio():
    prepared = prepare_run(Settings(limit=4, captions=4, controls=False, methods=("agla",)))
    ticks = []
    rows = overhead(prepared, 2, tick=ticks.append)
    assert len(ticks) == 2 * 2 * 2
    found = {(row["task"], row["method"], row["metric"]): row for row in rows}
    assert len(found) == 2 * 2 * 3
    for (_, _, metric), row in found.items():
        assert row["value"] > 0
        assert row["n"] == 4
        if metric == "harness_ratio":
            assert row["low"] <= row["value"] <= row["high"]
