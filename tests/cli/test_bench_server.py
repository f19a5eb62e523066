"""`lvlm-guard bench --server` and `--soak`, against the real front with an engine whose pace is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from front_server import serving
from measured_server import Engine, measured
from PIL import Image

Run = Callable[..., Any]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (24, 16), "teal").save(folder / "a.png")
    return folder


@pytest.fixture
def quick(pictures: Path) -> tuple[object, ...]:
    return "--blocks", 2, "--concurrency", 6, "--images", pictures, "--max-new-tokens", 4


def test_it_measures_every_name_and_prints_one_object(run: Run, quick: Any, tmp_path: Path) -> None:
    with measured(Engine()) as url, serving(Engine().app()) as ordinary:
        made = run("bench", "--server", url, "--plain-server", ordinary, *quick, "--json", "--out", tmp_path / "run")
    assert made.code == 0
    assert made.object["server"]["names"] == {"tiny": None, "tiny-agla": "agla", "tiny-vote": "vote"}
    assert made.object["server"]["twin"] is True
    assert made.object["server"]["vllm"] == {"guarded": "0.0.1", "plain": "0.0.1"}
    ratios = [row for row in made.object["rows"] if row["metric"] == "time_ratio" and row["task"] == "caption"]
    assert {(row["method"], row["server"], row["against"]) for row in ratios} == {
        ("agla", "guarded", "guarded"),
        ("agla", "guarded", "plain"),
        ("vote", "guarded", "guarded"),
        ("vote", "guarded", "plain"),
        ("greedy", "guarded", "plain"),
    }
    assert all(row["bound"] >= 1 and row["n"] == 24 for row in ratios)
    assert len((tmp_path / "run").read_text().splitlines()) == 1 + 2 * 2 * 4


def test_it_prints_tables_of_the_guards_that_were_asked_for(run: Run, quick: Any) -> None:
    with measured(Engine()) as url:
        made = run("bench", "--server", url, "--methods", "vote", *quick)
    assert made.code == 0
    for part in ("captions, 6 in flight (n = 24 each)", "questions, 6 in flight", "vote", "first token", "allowed"):
        assert part in made.out
    assert "agla" not in made.out


def test_a_server_that_fails_in_the_middle_leaves_what_was_measured(run: Run, quick: Any) -> None:
    with measured(Engine(refuse_after=140)) as url:
        made = run("bench", "--server", url, *quick, "--json")
    assert made.code == 1
    assert "worn out" in made.err
    assert "worn out" in made.object["stopped"]
    assert {row["blocks"] for row in made.object["rows"]} == {1}


def test_a_soak_counts_answers_and_fails_where_they_change(run: Run, pictures: Path) -> None:
    asked = ("--soak", 2, "--concurrency", 4, "--images", pictures, "--json")
    with measured(Engine()) as url:
        made = run("bench", "--server", url, *asked)
    assert made.code == 0
    assert made.object["sound"] is True
    assert {row["method"] for row in made.object["rows"] if row["metric"] == "answers"} == {"plain", "agla", "vote"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--server", "http://127.0.0.1:9", "--batches", "2"], 2, "--batches is not for --server"),
        (["--server", "http://127.0.0.1:9", "--device", "cpu"], 2, "--device is not for --server"),
        (["--server", "http://127.0.0.1:9", "--concurrency", "1,none"], 2, "whole numbers"),
        (["--server", "http://127.0.0.1:9", "--pid", "1"], 2, "--pid is only for --soak"),
        (["--server", "http://127.0.0.1:9", "--soak", "3", "--out", "x"], 2, "--out is not for --soak"),
        (["--server", "http://127.0.0.1:9"], 1, "can't be reached"),
        (["--server", "nonsense"], 1, "can't be reached"),
        (["--warm"], 2, "--warm is only for --server"),
        (["--soak", "3"], 2, "--soak is only for --server"),
    ],
)
def test_what_is_wrong_is_said_with_its_exit_code(run: Run, arguments: list[str], code: int, message: str) -> None:
    made = run("bench", *arguments)
    assert made.code == code
    assert message in " ".join(made.err.replace("│", " ").split())
