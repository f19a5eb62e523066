"""Runs on disk: whole or not there, read back as they were, and refused with the file and the line that is wrong."""

import csv
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_guard.evals.errors import DataError, RunError
from lvlm_guard.evals.report.saved import export_answers, plain, read_run, write_run, write_samples

SAMPLES = [
    {
        "task": "quiz",
        "kind": "pope",
        "key": str(i),
        "picture": str(i // 2),
        "prompt": "Is there a dog?\nAnswer the question.",
        "question": "Is there a dog?",
        "truth": "yes",
        "rows": ["pope_random", "pope_popular"],
        "answers": {"greedy": ['Yes,\ta "dog"\nis there'], "sample": ["yes", "no"]},
    }
    for i in range(3)
]
RUN = {
    "status": "complete",
    "settings": {"model": "m"},
    "decoders": [{"name": "greedy"}],
    "tasks": [{"name": "quiz", "n": 3}],
    "rows": [{"value": 0.5, "low": math.nan}],
}


@pytest.fixture
def folder(tmp_path):
    write_samples(tmp_path, SAMPLES)
    write_run(tmp_path, RUN)
    return tmp_path


def test_a_run_is_read_back_as_it_was_written(folder):
    saved = read_run(folder)
    assert saved.samples == SAMPLES
    assert saved.run == RUN | {"rows": [{"value": 0.5, "low": None}]}
    assert not list(folder.glob("*.part"))


def test_the_files_are_strict_json(folder):
    def refuse(constant):
        raise AssertionError(constant)

    json.loads((folder / "run.json").read_text(), parse_constant=refuse)
    for line in (folder / "samples.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(), part, max_size=4),
        max_leaves=12,
    )
)
def test_any_data_becomes_strict_json(data):
    json.dumps(plain(data), allow_nan=False)
    assert plain(plain(data)) == plain(data)


def test_numbers_of_numpy_and_sets_are_plain_data():
    assert plain({1: np.float64(0.5), "a": np.arange(3), "b": {"y", "x"}, "c": (np.nan, np.int64(2))}) == {
        "1": 0.5,
        "a": [0, 1, 2],
        "b": ["x", "y"],
        "c": [None, 2],
    }


def test_a_run_that_has_not_finished_is_called_stopped(tmp_path):
    (tmp_path / "begun.json").write_text(json.dumps({"settings": {"model": "m"}}))
    saved = read_run(tmp_path)
    assert saved.run["status"] == "stopped"
    assert "goes on from where it stopped" in saved.run["warnings"][0]
    assert saved.samples == []


def damaged(folder, name, change):
    path = folder / name
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("run.json", lambda t: t[:-10], "run.json can't be read"),
        ("run.json", lambda t: t.replace('"rows"', '"raws"'), "the field 'rows' is missing"),
        ("run.json", lambda t: "[]", "no JSON object"),
        ("samples.jsonl", lambda t: t[:-10], "Line 3 of .*samples.jsonl is no JSON"),
        ("samples.jsonl", lambda t: t.replace('"key": "1"', '"key": 1'), "Line 2 .*'key' is 1, and should be a text"),
        ("samples.jsonl", lambda t: "".join(t.splitlines(True)[:2]), "holds 2 of the 3 items of quiz"),
        ("samples.jsonl", lambda t: t.replace('"key": "1"', '"key": "2"'), "holds the item '2' of quiz twice"),
    ],
)
def test_a_file_that_was_changed_or_cut_is_named(folder, name, change, said):
    damaged(folder, name, change)
    with pytest.raises(DataError, match=said):
        read_run(folder)


def test_folders_without_a_run_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no run"):
        read_run(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        read_run(tmp_path / "none")


def test_a_disk_that_is_full_leaves_the_old_file(folder):
    before = (folder / "run.json").read_text()
    (folder / "run.json.part").symlink_to("/dev/full")
    with pytest.raises(RunError, match="No space left on device"):
        write_run(folder, RUN | {"rows": [{"x": "y" * 100_000}]})
    assert (folder / "run.json").read_text() == before


def test_answers_are_exported_as_vlmevalkit_reads_them(folder):
    path = export_answers(read_run(folder), "greedy", folder / "greedy.tsv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert list(rows[0]) == ["index", "question", "answer", "prediction", "category"]
    assert rows[2] == {
        "index": "2",
        "question": "Is there a dog?",
        "answer": "yes",
        "prediction": 'Yes,\ta "dog"\nis there',
        "category": "random,popular",
    }
    second = export_answers(read_run(folder), "sample", folder / "sample.tsv", seed=1)
    assert "\tno\t" in second.read_text()


def test_exports_of_what_is_not_there_are_refused(folder):
    saved = read_run(folder)
    with pytest.raises(DataError, match="Did you mean 'greedy'"):
        export_answers(saved, "gredy", folder / "x.tsv")
    with pytest.raises(DataError, match="has 1 run"):
        export_answers(saved, "greedy", folder / "x.tsv", seed=1)
