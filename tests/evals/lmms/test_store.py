"""Answers kept on disk: found again, keyed by the setting, whole after a kill at any byte."""

import os
from pathlib import Path

import pytest

from lvlm_guard.evals.errors import RunError
from lvlm_guard.evals.lmms.model import Store
from lvlm_guard.evals.spec.items import Said

SETTING = {"model": "m", "alpha": 2.0}


def add(store, *names):
    store.add([(name, {"doc_id": name}, Said(f"answer {name}", seconds=1.5)) for name in names])


def test_answers_are_found_again_with_what_they_cost(tmp_path):
    add(Store(tmp_path, SETTING), "a", "b")
    again = Store(tmp_path, SETTING)
    assert again.held["a"] == Said("answer a", seconds=1.5)
    assert "c" not in again.held


def test_another_setting_has_none_of_them(tmp_path):
    add(Store(tmp_path, SETTING), "a")
    assert "a" not in Store(tmp_path, SETTING | {"alpha": 1.0}).held
    assert len(list(tmp_path.glob("*.json"))) == 2, "each setting is written out for readers"


def test_processes_write_beside_each_other_and_read_all(tmp_path):
    first, second = Store(tmp_path, SETTING, 0), Store(tmp_path, SETTING, 1)
    add(first, "a")
    add(second, "b")
    assert {name: Store(tmp_path, SETTING, 2).held[name].text for name in "ab"} == {"a": "answer a", "b": "answer b"}
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


def test_a_file_that_was_cut_at_any_byte_loses_the_cut_answer_alone(tmp_path):
    add(Store(tmp_path, SETTING), "a", "b")
    (path,) = tmp_path.glob("*.jsonl")
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        store = Store(tmp_path, SETTING)
        assert ("a" in store.held) == (size >= first - 1)
        add(store, "c")
        again = Store(tmp_path, SETTING)
        assert again.held["c"] == Said("answer c", seconds=1.5), size
        assert ("a" in again.held) == (size >= first - 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_error_that_says_what_is_kept(tmp_path):
    store = Store(tmp_path, SETTING)
    add(store, "a")
    (path,) = tmp_path.glob("*.jsonl")
    path.rename(tmp_path / "kept")
    os.symlink("/dev/full", path)
    with pytest.raises(RunError, match="No space left"):
        add(store, "b")
