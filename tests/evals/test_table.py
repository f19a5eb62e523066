"""The terminal's table and its sentences: nothing cut, columns by metric and role, verdicts that follow the numbers."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from typing import Any

import pytest
from results import ROLES, change, decoder, results, row
from rich.console import Console

from lvlm_guard.evals.report.layout import Results, interval, judged, number, p_text, said, written
from lvlm_guard.evals.report.terminal import sentences, tables


def printed(data: dict[str, Any], width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    for table in tables(data, width):
        console.print(table)
    return console.export_text()


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_table_fits_its_terminal_and_cuts_nothing(width: int) -> None:
    text = printed(results(), width)
    assert "…" not in text
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    for name in ROLES:
        assert len(re.findall(rf"^ {name}\s", text, re.M)) == (1 if name in ("matcher", "tilt") else 2), name
    assert ".900 +.100" in text
    assert "AUROC" in text
    assert "×greedy" in text
    # the columns of least weight go first
    assert ("12/40" in text) == (width > 100)
    assert ("unreadable" in text) == ("moves the threshold" in text) == (width == 200)


def test_yes_ratios_stand_less_the_share_of_the_labels() -> None:
    line = next(line for line in printed(results(), 80).splitlines() if line.startswith(" agla "))
    assert "−.050" in line


def test_a_verdict_is_told_of_methods_on_all_items_and_not_of_controls() -> None:
    told = sentences(results())
    assert told[0].startswith("agla on pope_all: moves the threshold. Accuracy +.100")
    assert told[1].startswith("vote on pope_all: ranks worse.")
    assert not any("pope_random" in one or one.startswith("tilt") for one in told)


def test_a_guard_that_says_less_and_one_that_changes_nothing_are_shown_as_such() -> None:
    told = sentences(results())
    vote = next(one for one in told if one.startswith("vote on chair"))
    assert "names fewer absent objects, CHAIR_i −.100 [−.130, −.070], p<.001" in vote
    assert "its captions are 50% shorter" in vote
    assert "10% of its object words repeat one of the same caption (greedy: 20%)" in vote
    agla = next(one for one in told if one.startswith("agla on chair"))
    assert "no clear effect" in agla
    assert "shorter" not in agla
    assert not any(one.startswith("prompt-no on chair") for one in told)


def test_a_void_run_has_neither_table_nor_sentence() -> None:
    assert (tables(results(void=["empty"])), sentences(results(void=["empty"]))) == ([], [])


def test_what_is_good_is_said_by_the_column_direction_and_by_no_metric_s_name() -> None:
    up = change("amber", "agla", "amber_chair", -5.0, spread=1.0, direction="lower")
    assert judged(up) == "good"
    assert judged(up | {"direction": "higher"}) == "bad"
    assert judged(up | {"direction": ""}) == ""
    assert judged(up | {"bold": False}) == ""
    assert judged(None) == ""


def test_a_lower_score_of_a_stock_task_that_is_better_is_green() -> None:
    task = {"name": "amber", "kind": "stock", "rows": [], "split": "test", "pictures": 9, "n": 9, "about": {}}
    rows = [row("amber", "greedy", "amber_chair", 9.0), row("amber", "agla", "amber_chair", 4.0)]
    rows.append(change("amber", "agla", "amber_chair", -5.0, spread=1.0, direction="lower"))
    (table,) = tables(results(rows=rows, tasks=[task], verdicts=[], costs=[]))
    spans = [span.style for cell in table.columns[1].cells for span in getattr(cell, "spans", ())]
    assert "bold green" in spans
    assert "bold red" not in spans


def test_numbers_are_written_as_shares_or_as_what_they_are() -> None:
    assert [number(value, signed=True) for value in (-0.1464, 0.02, -0.0001)] == ["−.146", "+.020", "+.000"]
    assert [number(value) for value in (0.879, 1.0, 0.0, None)] == [".879", "1.000", ".000", "–"]
    assert [p_text(p) for p in (0.0004, 0.0421, None)] == ["p<.001", "p=.042", ""]
    found = change("pope_all", "agla", "accuracy", 0.11, spread=0.09)
    assert interval(found) == "[+.020, +.200]"
    assert interval(found | {"low": None}) == ""
    assert said(found) == "+.110 [+.020, +.200], p<.001"
    assert written(row("pope_all", "agla", "tilt", -0.851)) == "−0.85"
    assert written(None) == "–"


def test_the_knobs_of_a_sweep_point_are_shown_and_not_taken_for_markup() -> None:
    data = results()
    for one in (*data["decoders"], *data["rows"], *data["costs"]):
        for field in ("name", "decoder"):
            if one.get(field) == "vote":
                one[field] = "agla[alpha=1,beta=0.1]"
    assert "agla[alpha=1,beta=0.1]" in printed(data, 200)


def test_rows_of_a_task_are_told_by_what_it_asked_even_where_two_tasks_share_a_name() -> None:
    tasks = [{"name": name, "rows": ["pope_random", "pope_popular"]} for name in ("one", "two")]
    names = ["pope_random@one", "pope_popular@one", "pope_all@one", "pope_random@two", "pope_popular@two", "x_all"]
    found = Results(results(rows=[row(name, "greedy", "accuracy", 0.5) for name in names], tasks=tasks, costs=[]))
    assert [found.row_tasks(task) for task in tasks] == [names[:3], names[3:]]


def test_a_decoder_is_judged_by_its_role_whatever_it_is_called() -> None:
    data = results(decoders=[decoder("greedy"), decoder("sample-matched-greedy", role="method")])
    data["rows"] = [row("chair", name, "chair_i", 0.2) for name in ("greedy", "sample-matched-greedy")]
    for metric in ("chair_i", "object_recall"):
        data["rows"].append(change("chair", "sample-matched-greedy", metric, -0.1))
    assert any(one.startswith("sample-matched-greedy on chair: names fewer") for one in sentences(data))


def test_tables_need_neither_torch_nor_lmms_eval() -> None:
    heavy = "{'torch', 'transformers', 'lmms_eval'}"
    code = f"import sys, lvlm_guard.evals.report.terminal; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
