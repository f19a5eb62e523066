"""Runs on disk: read lazily and as they were written, and refused with the file and the line that is wrong."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from runs import captions, pope, saved

from lvlm_guard.evals.errors import DataError, RunError, VoidRunError
from lvlm_guard.evals.report.saved import Run, export_answers, finished, read_run
from lvlm_guard.evals.spec.answers import table_of
from lvlm_guard.evals.spec.jsonl import write_lines

LABELS = ["yes", "no", "yes"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    twice = [["yes", "no"], ["no", "no"], ["no", "yes"]]
    task = pope(LABELS, rows=("pope_random", "pope_popular"))
    return saved(tmp_path / "run", task, {"greedy": ['Yes,\ta "dog"\nis there', *LABELS[1:]], "sample": twice})


def test_a_run_is_read_back_as_it_was_asked_and_answered(run: Run) -> None:
    assert run.status == "complete"
    assert [item["truth"] for item in run.items["world_pope"].values()] == LABELS
    told = run.answers(("item", "seed", "text"), decoder="sample", item=["0", "2"]).to_pylist()
    assert [(row["item"], row["seed"], row["text"]) for row in told] == [
        ("0", 0, "yes"),
        ("0", 1, "no"),
        ("2", 0, "no"),
        ("2", 1, "yes"),
    ]
    seen = [
        (item["item"], {name: len(rows) for name, rows in said.items()}) for item, said in run.by_item("world_pope")
    ]
    assert seen == [(key, {"greedy": 1, "sample": 2}) for key in "012"]


def test_how_far_a_run_is_follows_from_its_files(tmp_path: Path, run: Run) -> None:
    (run.folder / "results.json").unlink()
    unscored = read_run(run.folder)
    assert unscored.status == "unscored"
    with pytest.raises(DataError, match=r"`lvlm-guard eval score .*` makes them"):
        finished(unscored)
    (run.folder / "answers.parquet").unlink()
    assert read_run(run.folder).status == "stopped"
    with pytest.raises(DataError, match="goes on from where it stopped"):
        finished(run.folder)
    with pytest.raises(DataError, match="goes on from where it stopped"):
        read_run(run.folder).answers()
    void = saved(tmp_path / "void", pope(LABELS), {"greedy": ["", "no", "yes"]})
    assert void.status == "void"
    with pytest.raises(VoidRunError, match="1 of 3 answers are empty"):
        finished(void)


def test_a_run_whose_model_was_never_loaded_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "asked.json").write_text(json.dumps({"settings": {"model": "m"}, "tasks": []}))
    assert read_run(tmp_path).status == "stopped"


def test_calibration_items_are_not_what_is_reported(run: Run) -> None:
    with (run.folder / "items.jsonl").open("a") as file:
        told = {"task": "world_pope", "split": "val", "kind": "pope", "item": "v", "picture": "v", "truth": "no"}
        file.write(json.dumps(told) + "\n")
    assert list(read_run(run.folder).items["world_pope"]) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("asked.json", lambda t: t[:-10], "asked.json is no JSON"),
        ("asked.json", lambda t: t.replace('"tasks"', '"taks"'), "the field 'tasks' is missing"),
        ("results.json", lambda t: "[]", "results.json is no JSON object"),
        ("items.jsonl", lambda t: t[:-10], "Line 3 of .*items.jsonl, the last, is cut short"),
        ("items.jsonl", lambda t: t.replace('"item": "1"', '"key": "1"'), "Line 2 of .*items.jsonl has no 'item'"),
        ("items.jsonl", lambda t: "".join(t.splitlines(True)[:2]), "holds 2 of the 3 items of world_pope"),
        ("items.jsonl", lambda t: t.replace('"item": "1"', '"item": "2"'), "item '2' more than once, in lines 2 and 3"),
    ],
)
def test_a_file_that_was_changed_or_cut_is_named(run: Run, name: str, change: Callable[[str], str], said: str) -> None:
    path = run.folder / name
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=said):
        _ = read_run(run.folder).items


def test_a_line_separator_inside_a_question_is_part_of_it(tmp_path: Path) -> None:
    run = saved(tmp_path, captions([["dog"]]), {"greedy": ["a dog\u2028and a cat"]})
    path = run.folder / "items.jsonl"
    path.write_text(path.read_text().replace("describe", "describe\u2028it"), encoding="utf-8")
    again = read_run(run.folder)
    assert again.items["world_chair"]["0"]["prompt"] == "describe\u2028it"
    assert again.answers(("text",)).to_pylist() == [{"text": "a dog\u2028and a cat"}]


def test_a_table_that_is_none_is_told(run: Run) -> None:
    (run.folder / "answers.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"answers\.parquet can't be read"):
        read_run(run.folder).answers()


def test_folders_without_a_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no run"):
        read_run(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        read_run(tmp_path / "none")


def test_a_disk_that_is_full_leaves_the_old_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "report.html", ["old"])
    (tmp_path / "report.html.part").symlink_to("/dev/full")
    with pytest.raises(RunError, match="No space left on device"):
        write_lines(tmp_path / "report.html", ["y" * 100_000])
    assert (tmp_path / "report.html").read_text() == "old\n"


def test_answers_are_exported_as_vlmevalkit_reads_them(run: Run) -> None:
    path = export_answers(run, "greedy", run.folder / "greedy.tsv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert list(rows[0]) == ["index", "question", "answer", "prediction", "category"]
    assert rows[0] == {
        "index": "0",
        "question": "question 0",
        "answer": "yes",
        "prediction": 'Yes,\ta "dog"\nis there',
        "category": "pope_random",
    }
    second = export_answers(run, "sample", run.folder / "sample.tsv", seed=1)
    assert [line.split("\t")[3] for line in second.read_text().splitlines()[1:]] == ["no", "no", "yes"]


def test_requests_that_failed_are_no_predictions(run: Run) -> None:
    rows = pq.read_table(run.folder / "answers.parquet").to_pylist()
    (lost,) = [row for row in rows if (row["decoder"], row["item"]) == ("greedy", "1")]
    lost.update(text="", failed="HTTP 400")
    pq.write_table(table_of(rows), run.folder / "answers.parquet")
    lines = export_answers(run, "greedy", run.folder / "greedy.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines if line[0] in "012"] == ["0", "2"]


def test_exports_of_what_is_not_there_are_refused(run: Run) -> None:
    with pytest.raises(DataError, match="Did you mean 'greedy'"):
        export_answers(run, "gredy", run.folder / "x.tsv")
    with pytest.raises(DataError, match="has 1 run"):
        export_answers(run, "greedy", run.folder / "x.tsv", seed=1)
