"""The terminal's table and its sentences: nothing cut, and verdicts that follow the numbers."""

import io
import re

import pytest
from rich.console import Console

from lvlm_guard.evals.report.figures import ends, number, p_text, verdict
from lvlm_guard.evals.report.remarks import remarks
from lvlm_guard.evals.report.terminal import tables

DECODERS = ["greedy", "sample-matched", "agla", "agla-random", "vote"]


def row(method, task, metric, value, p=None, spread=0.05, **more):
    made = {"model": "m", "method": method, "task": task, "metric": metric, "value": value, "n": 300}
    made |= {"low": value - spread, "high": value + spread}
    return made | ({"p_value": p} if p is not None else {}) | more


def made_run(**values):
    """A run whose agla lifts accuracy by saying no, and whose vote shortens captions."""
    rows = []
    for task in ("pope_random", "pope_adversarial", "pope_all"):
        for name in DECODERS:
            rows += [row(name, task, "accuracy", 0.8), row(name, task, "f1", 0.8)]
            rows.append(row(name, task, "yes_ratio", 0.45 if name == "agla" else 0.6))
        rows.append(row("greedy", task, "label_yes", 0.5))
        for name in DECODERS[1:]:
            difference = {"agla": 0.1, "vote": -0.1}.get(name, 0.01)
            p = 0.0002 if name in ("agla", "vote") else 0.5
            rows.append(row(f"{name}-greedy", task, "accuracy", difference, p, fixed=40, broken=10))
        rows.append(row("agla-agla-random", task, "accuracy", 0.09, 0.0002))
    for name in DECODERS:
        rows += [row(name, "chair", metric, 0.2) for metric in ("chair_i", "chair_s", "object_recall", "repeats")]
        rows += [
            row(name, "chair", "length", 6.0 if name == "vote" else 12.0),
            row(name, "chair", "objects_named", 3.0),
        ]
    for name in DECODERS[1:]:
        rows.append(row(f"{name}-greedy", "chair", "chair_i", -0.1 if name == "vote" else 0.0, 0.0002))
        rows.append(row(f"{name}-greedy", "chair", "object_recall", -0.08 if name == "vote" else 0.0, 0.4))
    tasks = [
        {"name": "pope_task", "kind": "pope", "rows": ["pope_random", "pope_adversarial"]},
        {"name": "captions", "kind": "chair", "rows": ["chair"]},
    ]
    common = {"split": "test", "pictures": 50, "n": 600, "about": {}}
    for task in tasks:
        for name in DECODERS:
            rows += [row(name, task["name"], "tokens", 5.0), row(name, task["name"], "masks", 1.0)]
    return {
        "status": "complete",
        "settings": {"model": "m"},
        "reference": "greedy",
        "compared": [["agla", "agla-random", "what the map adds"], ["agla", "none such", "never shown"]],
        "decoders": [{"name": name, "method": name if name in ("agla", "vote") else None} for name in DECODERS],
        "tasks": [task | common for task in tasks],
        "rows": rows,
        "times": {"rows": [row(name, t["name"], "time_ratio", 1.5) for name in DECODERS for t in tasks]},
        **values,
    }


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_the_table_fits_its_terminal_and_cuts_nothing(width):
    console = Console(width=width, record=True, file=io.StringIO())
    for table in tables(made_run(), width):
        console.print(table)
    text = console.export_text()
    assert "…" not in text
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    for name in DECODERS:
        assert len(re.findall(rf"^ {name}\s", text, re.M)) == 2, name
    assert "p<.001" in text
    # the columns of least weight go first
    assert "40/10" in text if width == 160 else width > 80 or "40/10" not in text
    assert "×greedy" in text


def test_a_guard_that_says_no_more_often_and_one_that_says_less_are_shown_as_such():
    said = remarks(made_run())
    agla = next(sentence for sentence in said if sentence.startswith("agla answers"))
    assert "agla answers more questions right than greedy on pope_all" in agla
    assert "it says no more often (yes ratio .600 to .450, .500 would be right)" in agla
    assert any(sentence.startswith("vote answers fewer questions right") for sentence in said)
    vote = next(sentence for sentence in said if sentence.startswith("In captions vote"))
    assert "names fewer absent objects" in vote
    assert "its captions are 50% shorter" in vote
    assert any("agla has no clear effect" in sentence for sentence in said)
    assert any("agla − agla-random" in sentence and "what the map adds" in sentence for sentence in said)
    assert not any("never shown" in sentence for sentence in said)


def test_a_void_run_is_told_without_a_verdict():
    assert remarks(made_run(status="void")) == []


def test_differences_are_called_clear_only_by_interval_and_test_together():
    found = {"metric": "accuracy", "value": 0.1, "low": 0.02, "high": 0.2, "p_value": 0.01}
    assert verdict(found) == "good"
    assert verdict(found | {"metric": "chair_i"}) == "bad"
    assert verdict(found | {"p_value": 0.2}) == ""
    assert verdict(found | {"low": -0.01}) == ""
    assert [number(value, signed=True) for value in (-0.1464, 0.02, -0.0001)] == ["−.146", "+.020", "+.000"]
    assert [number(value) for value in (0.879, 1.0, 0.0)] == [".879", "1.000", ".000"]
    assert p_text(0.0004) == "p<.001"
    assert p_text(0.0421) == "p=.042"
    assert ends(found) == "[.020, .200]"
    assert ends(found | {"low": None}) == ""


def test_the_knobs_of_a_sweep_point_are_shown_and_not_taken_for_markup():
    run = made_run()
    for one in run["decoders"]:
        one["name"] = one["name"].replace("vote", "agla[alpha=1,beta=0.1]")
    for one in (*run["rows"], *run["times"]["rows"]):
        one["method"] = one["method"].replace("vote", "agla[alpha=1,beta=0.1]")
    text = io.StringIO()
    for table in tables(run, 200):
        Console(file=text, width=200).print(table)
    assert "agla[alpha=1,beta=0.1]" in text.getvalue()
