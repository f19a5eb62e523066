"""Workers side by side: the same answers as one process, and no process left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lvlm_guard.evals.errors import RunError
from lvlm_guard.evals.infer.crew import Crew
from lvlm_guard.evals.infer.prepare import prepare_run
from lvlm_guard.evals.infer.store import Answers, Job
from lvlm_guard.evals.spec.settings import Settings

SETTINGS = Settings(limit=1, captions=2, seeds=1, batch=8)


@pytest.fixture(scope="module")
def prepared():
    return prepare_run(SETTINGS)


@pytest.fixture(scope="module")
def crew():
    with Crew(SETTINGS, 2) as two:
        yield two


def test_workers_give_the_answers_of_one_process(prepared, crew, tmp_path):
    together = Answers(tmp_path, prepared.asked(), SETTINGS.batch)
    for job, found in crew.work(together.open_jobs()):
        task = together.asked[job.task].task
        alone = prepared.answerer.ask(task, task.block(job.block, SETTINGS.batch), job.todo)
        for (name, seed), ours, theirs in zip(job.todo, found, alone, strict=True):
            assert [(one.text, one.tokens, one.masks) for one in ours] == [
                (one.text, one.tokens, one.masks) for one in theirs
            ], name
            together.add((name, job.task, seed, job.block), ours)
    assert together.open_jobs() == []


def test_a_worker_that_dies_is_an_error_with_its_last_words(crew):
    job = Job("world_pope", 0, (("no such decoder", 0),))
    with pytest.raises(RunError, match=r"answered block 0 of world_pope: KeyError: 'no such decoder'.*--workers 1"):
        list(crew.work([job]))


def test_a_worker_that_is_killed_is_an_error_too():
    with Crew(SETTINGS, 1) as one:
        one._workers[0].process.send_signal(signal.SIGKILL)
        with pytest.raises(RunError, match="ended from outside"):
            list(one.work([Job("world_pope", 0, (("greedy", 0),))]))


SCRIPT = """
import sys
from lvlm_guard.evals.infer.run import run
from lvlm_guard.evals.spec.settings import Settings
run(Settings(limit=8, captions=4, batch=8), sys.argv[1], workers=2, bar=False, report=False,
    echo=lambda text: print(text, flush=True))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks into /proc")
def test_ctrl_c_keeps_the_answers_says_where_and_leaves_no_process(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    answered = tmp_path / "answers" / "greedy.jsonl"
    until = time.monotonic() + 120
    while not (answered.exists() and answered.read_text()) and time.monotonic() < until and process.poll() is None:
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGINT)
    said, trouble = process.communicate(timeout=60)
    assert f"Stopped. The answers so far are in {tmp_path / 'answers'}" in said, trouble
    assert "KeyboardInterrupt" in trouble
    assert len(children) == 2
    assert not [child for child in children if _runs(int(child))]
    assert json.loads((tmp_path / "begun.json").read_text())["settings"]["limit"] == 8
    assert not (tmp_path / "run.json").exists()
    assert len(answered.read_text().splitlines()) % 8 == 0


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return b"evals.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
