"""Heat maps of swept knobs: which cells are bright, framed or missing, and what is said of the best."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from lvlm_guard.evals.report.page import charts, write_report
from lvlm_guard.evals.report.page.charts import Cell, Sweep
from lvlm_guard.evals.report.saved import Run
from tests.support import runs


def sweep_run(tmp_path: Path, knobs: Sequence[Mapping[str, Any]], answers: Sequence[Sequence[str]]) -> Run:
    names = [f"agla[{i}]" for i in range(len(knobs))]
    labels = ["yes"] * len(answers[0])
    task = replace(runs.pope(labels, each=1), split="val")
    said = {"greedy": ["no"] * len(labels)} | dict(zip(names, answers, strict=True))
    more = {name: {"method": "agla", "point": dict(point)} for name, point in zip(names, knobs, strict=True)}
    return runs.saved(tmp_path, task, said, decoders=more)


def right(*numbers: int, of: int = 4) -> list[list[str]]:
    """Answers of points of which so many are right; all labels are yes."""
    return [["yes"] * n + ["no"] * (of - n) for n in numbers]


def cells(sweep: Sweep) -> list[Cell]:
    return [cell for grid in sweep.grids for _, line in grid.lines for cell in line]


def brightness(cell: Cell) -> int:
    found = re.match(r"background: rgb\((\d+) (\d+) (\d+)\)", cell.colours)
    assert found
    return sum(map(int, found.groups()))


def test_a_sweep_frames_its_best_points_and_says_that_it_is_no_result(tmp_path: Path) -> None:
    knobs = [{"alpha": a, "beta": b} for a in (2.0, 0.5) for b in (0.1, 0.5)]
    run = sweep_run(tmp_path, knobs, right(4, 1, 4, 2))
    first = next(charts.sweeps(run.results))
    (grid,) = first.grids
    assert grid.title == "agla on pope_random, accuracy: more is better"
    assert grid.columns == ["alpha=0.5", "alpha=2"]
    assert [name for name, _ in grid.lines] == ["beta=0.1", "beta=0.5"]
    assert [(cell.text, cell.best) for cell in cells(first)] == [
        ("1.000", True),
        ("1.000", True),
        (".500", False),
        (".250", False),
    ]
    lightness = [brightness(cell) for cell in cells(first)]
    assert lightness[0] == lightness[1] > lightness[2] > lightness[3]
    assert "1 others alike" in first.best
    page = ElementTree.fromstring(write_report(tmp_path).read_text(encoding="utf-8").removeprefix("<!DOCTYPE html>\n"))
    said = " ".join("".join(page.itertext()).split())
    assert "validation split" in said
    assert first.best in said
    assert [cell.text for cell in page.iter("td") if cell.get("class") == "best"][:2] == ["1.000", "1.000"]
    table = next(table for table in page.iter("table") if table.get("class") == "sweep")
    assert [th.get("scope") for th in table.iter("th")] == ["col", "col", "row", "row"]


def test_one_knob_is_a_strip_and_three_are_several_grids(tmp_path: Path) -> None:
    one = next(charts.sweeps(sweep_run(tmp_path / "1", [{"alpha": a} for a in (1, 2, 3)], right(4, 4, 4)).results))
    (grid,) = one.grids
    assert grid.columns == ["alpha=1", "alpha=2", "alpha=3"]
    assert [name for name, _ in grid.lines] == [""]
    assert len({brightness(cell) for cell in cells(one) if cell.best}) == 1
    knobs = [{"alpha": a, "beta": 1, "mode": m} for m in ("paper", "official") for a in (1, 2)]
    three = next(charts.sweeps(sweep_run(tmp_path / "3", knobs, right(1, 0, 0, 0, of=1)).results))
    assert ["mode=paper" in grid.title for grid in three.grids] == [True, False]
    assert [sum(cell.best for _, line in grid.lines for cell in line) for grid in three.grids] == [1, 0]


def test_a_difference_within_noise_does_not_look_like_a_trend(tmp_path: Path) -> None:
    knobs = [{"alpha": a} for a in (1, 2)]
    sure = next(charts.sweeps(sweep_run(tmp_path / "sure", knobs, right(8, 6, of=8)).results))
    noisy = next(charts.sweeps(sweep_run(tmp_path / "noisy", knobs, right(5, 3, of=8)).results))
    apart = [brightness(best) - brightness(other) for best, other in map(cells, (sure, noisy))]
    assert 0 < apart[1] < apart[0] / 2


def test_a_point_that_was_not_run_is_a_gap_and_not_a_zero(tmp_path: Path) -> None:
    knobs = [{"alpha": 1, "beta": 1}, {"alpha": 2, "beta": 1}, {"alpha": 1, "beta": 2}]
    drawn = cells(next(charts.sweeps(sweep_run(tmp_path, knobs, right(4, 3, 2)).results)))
    assert [cell.text for cell in drawn] == ["1.000", ".750", ".500", "–"]
    assert drawn[-1].colours == ""


def test_where_less_is_better_the_smallest_is_the_brightest(tmp_path: Path) -> None:
    said = {"greedy": ["a cat"], "few": ["a dog"], "many": ["a dog and a cat"]}
    points = {name: {"method": "agla", "point": {"alpha": n}} for n, name in enumerate(said) if n}
    run = runs.saved(tmp_path, runs.captions([["dog"]]), said, decoders=points)
    by_chair_i = next(charts.sweeps(run.results))
    assert by_chair_i.grids[0].title.endswith("less is better")
    few, many = cells(by_chair_i)
    assert few.best
    assert brightness(few) > brightness(many)
