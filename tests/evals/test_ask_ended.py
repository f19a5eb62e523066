"""Asking that is ended from outside: no end of it loses anything or changes a byte."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

SCRIPT = """
import sys
from lvlm_guard.evals.infer.ask import ask
from lvlm_guard.evals.spec.settings import Settings
ask(Settings(limit=1, captions=2, seeds=1, batch=4, methods=("agla",), tasks=("world_pope", "world_chair")),
    sys.argv[1], workers=int(sys.argv[2]), bar=False, echo=lambda text: print(text, flush=True))
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def note(folder):
    return json.loads((folder / "asked.json").read_text())


def table(folder):
    return (folder / "answers.parquet").read_bytes()


def start(folder, workers):
    words = [sys.executable, "-c", SCRIPT, str(folder), str(workers)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(process):
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def lines(folder):
    return sum(path.read_bytes().count(b"\n") for path in (folder / "answers").glob("*.jsonl"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_ten_random_moments_processes_or_single_ranks_it_ends_in_the_same_bytes(tmp_path):
    rng, out = random.Random(0), tmp_path / "killed"
    whole = start(tmp_path / "whole", 1)
    _, trouble = whole.communicate()
    assert whole.returncode == 0, trouble
    count = pq.read_table(tmp_path / "whole" / "answers.parquet").num_rows
    for number in range(10):
        process = start(out, 2 if number % 3 == 2 else 1)
        # a moment by what is on disk: from before the model is loaded to the table's last byte
        moment = lines(out) + rng.randint(0, count // 3)
        until = time.monotonic() + 300
        while process.poll() is None and lines(out) < moment and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        if number in (2, 8) and (ranks := children(process)):
            subprocess.run(["kill", "-9", str(rng.choice(ranks))], check=False)
            _, trouble = process.communicate(timeout=600)
            assert process.returncode == 0 or "the same command goes on from there" in trouble
        process.kill()
        process.communicate()
        if (out / "answers.parquet").exists():
            assert (out / "answers.parquet").read_bytes() == table(tmp_path / "whole")
            shutil.rmtree(out)  # it had finished: begin again
    last = start(out, 1)
    _, trouble = last.communicate()
    assert last.returncode == 0, trouble
    assert table(out) == table(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks into /proc")
def test_ctrl_c_keeps_the_answers_says_where_and_leaves_no_process(tmp_path):
    process = start(tmp_path, 2)
    until = time.monotonic() + 300
    while not lines(tmp_path) and time.monotonic() < until and process.poll() is None:
        time.sleep(0.02)
    ranks = children(process)
    process.send_signal(signal.SIGINT)
    said, trouble = process.communicate(timeout=60)
    assert f"Stopped. The answers so far are in {tmp_path / 'answers'}" in said, trouble
    assert "KeyboardInterrupt" in trouble
    assert len(ranks) == 2
    assert not [rank for rank in ranks if Path(f"/proc/{rank}/cmdline").exists()]
    assert note(tmp_path)["settings"]["limit"] == 1
    assert lines(tmp_path)
    assert not (tmp_path / "answers.parquet").exists()
