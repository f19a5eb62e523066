"""Ranks that share a run: whichever dies or hangs, the others go on, and the run ends with what to do."""

import subprocess
import sys
import tempfile
import time

import pytest

from lvlm_guard.errors import KnobError
from lvlm_guard.evals.errors import RunError
from lvlm_guard.evals.infer import ranks
from lvlm_guard.evals.infer.ranks import run_ranks
from lvlm_guard.ranks import Place

FINE = "open(sys.argv[1], 'a').write('1\\n2\\n'); time.sleep(0.6); open(sys.argv[1], 'a').write('3\\n')"


@pytest.fixture
def workers(monkeypatch, tmp_path):
    """Scripts in the place of ranks: (folder, how to run them)."""
    (tmp_path / "answers").mkdir()

    def runs(*scripts, told=None):
        def start(folder, rank, count):
            assert count == len(scripts)
            log, shard = tempfile.TemporaryFile(), folder / "answers" / f"rank-{rank}.jsonl"  # noqa: SIM115
            words = [sys.executable, "-c", "import os, sys, time\n" + scripts[rank], str(shard)]
            process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=log, stderr=log)
            started.append(process)
            return ranks.Worker(rank, process, log, shard)

        monkeypatch.setattr(ranks, "start", start)
        counted, told = [], [] if told is None else told
        began = time.monotonic()
        try:
            run_ranks(tmp_path, len(scripts), counted.append, told.append, patience=5.0)
        finally:
            assert all(process.poll() is not None for process in started), "no process is left behind"
            assert time.monotonic() - began < 25
        return sum(counted), told

    started = []
    return tmp_path, runs


def test_ranks_that_end_well_are_counted_as_they_answer(workers):
    assert workers[1](FINE, FINE) == (6, [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("sys.exit('no such matcher')", r"Worker 1: no such matcher. The answers so far are kept"),
        ("raise KeyError('no such decoder')", r"Worker 1: KeyError: 'no such decoder'"),
        ("os.kill(os.getpid(), 9)", r"Worker 1 was ended from outside, mostly for want of memory\."),
        ("os._exit(3)", r"Worker 1 stopped with code 3\."),
        ("time.sleep(60)", r"Worker 1 gave no answer for 5 s and was ended\."),
        ("time.sleep(1); sys.stdin.read()", r"Worker 1 gave no answer for 5 s and was ended\."),
    ],
    ids=["refuses", "breaks", "is killed", "ends", "hangs", "waits"],
)
def test_a_worker_that_dies_or_hangs_ends_the_run_with_what_to_do_and_the_others_go_on(workers, script, words):
    folder, runs = workers
    with pytest.raises(RunError, match=words + r".*the same command goes on from there.*--workers 1"):
        runs(FINE, script)
    assert (folder / "answers" / "rank-0.jsonl").read_text() == "1\n2\n3\n"


def test_a_worker_that_died_is_told_while_the_others_go_on(workers):
    folder, runs = workers
    told = []
    with pytest.raises(RunError):
        runs("sys.exit('gone')", FINE, told=told)
    assert told == ["Worker 0: gone. The others go on."]
    assert (folder / "answers" / "rank-1.jsonl").read_text() == "1\n2\n3\n"


@pytest.mark.parametrize(
    ("told", "place"),
    [
        ({}, Place()),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Place(3, 8, 1)),
        ({"RANK": "3"}, Place()),
        ({"WORLD_SIZE": "2"}, Place()),
    ],
)
def test_torchrun_says_who_a_process_is(monkeypatch, told, place):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert Place.here() == place


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("x", "2"), ("-1", "2"), ("0", "0")])
def test_a_rank_that_can_not_be_is_refused(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(KnobError, match=f"RANK={rank} and WORLD_SIZE={world}.*unset them"):
        Place.here()


def test_each_rank_has_a_gpu_of_its_own_where_there_are_several(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [Place(8 + n, 16, n).device("auto") for n in range(6)] == [f"cuda:{n % 4}" for n in range(6)]
    assert Place(1, 2, 1).device("cuda:0") == "cuda:0"
    assert Place().device("auto") == "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Place(1, 2, 1).device("auto") == "auto"
