from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.mark.slow
def test_demo_scores_writes_its_page_and_prints_one_object(run: Run, tmp_path: Path) -> None:
    made = run("demo", "--quick", "--out", tmp_path, "--json")
    assert made.code == 0
    whole = made.object
    assert set(whole) >= {"command", "version", "rows", "differences", "verdicts"}
    found = {(row["method"], row["task"], row["metric"]) for row in whole["rows"]}
    assert len(found) == len(whole["rows"])  # values alone, each once
    for method in ("greedy", "sample", "vcd", "agla", "agla-random", "vote", "matcher", "tilt", "olm"):
        for metric in ("accuracy", "balanced_accuracy", "accuracy_matched", "auroc", "tilt", "yes_ratio", "f1"):
            assert (method, "pope_all", metric) in found
    assert ("vote", "chair", "chair_i") in found
    page = (tmp_path / "demo.html").read_text(encoding="utf-8")
    assert "<script" not in page


def test_demo_refuses_a_folder_that_is_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made = run("demo", "--out", tmp_path / "file")
    assert made.code == 2
    assert "is a file" in made.err
