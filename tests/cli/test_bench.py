from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Run = Callable[..., Any]
QUICK = ("--blocks", "1", "--methods", "agla", "--executions", "auto", "--batches", "1")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    Image.new("RGB", (50, 40), "teal").save(tmp_path / "a.png")
    return tmp_path


@pytest.mark.slow
def test_bench_prints_one_object_with_a_ratio_for_each_task(run: Run) -> None:
    made = run("bench", *QUICK, "--json")
    assert made.code == 0
    whole = made.object
    assert whole["command"] == "bench"
    assert whole["environment"]["device"] == "cpu"
    ratios = {row["task"]: row for row in whole["rows"] if row["metric"] == "time_ratio"}
    assert set(ratios) == {"caption", "question"}
    assert all(row["method"] == "agla" and 0.5 < row["value"] < 20 for row in ratios.values())


def test_bench_prints_tables(run: Run, pictures: Path) -> None:
    made = run("bench", *QUICK, "--images", pictures)
    assert made.code == 0
    for part in ("captions, one by one", "questions, one by one", "greedy", "agla", "peak MiB"):
        assert part in made.out


def test_bench_measures_on_a_users_pictures(run: Run, pictures: Path) -> None:
    made = run("bench", *QUICK, "--images", pictures, "--max-new-tokens", 3, "--json")
    assert made.code == 0
    assert {row["n"] for row in made.object["rows"] if row["metric"] == "time_ratio"} == {1, 6}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--methods", "agla,votes"], 2, "Did you mean 'vote'"),
        (["--methods", ","], 2, "one or more"),
        (["--executions", "auto,fast"], 2, "auto, lazy, batched"),
        (["--batches", "1,zero"], 2, "whole numbers"),
        (["--batches", "0"], 2, "at least 1"),
        (["--images", "nowhere"], 1, "no folder 'nowhere'"),
    ],
)
def test_what_is_wrong_is_said_with_its_exit_code(run: Run, arguments: list[str], code: int, message: str) -> None:
    made = run("bench", *arguments)
    assert made.code == code
    assert message in " ".join(made.err.replace("│", " ").split())
