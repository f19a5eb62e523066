"""Workers side by side: the same answers as one process, and no process left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lvlm_guard.embedded import MODEL
from lvlm_guard.evals.answers import Answers, Job, ask_all, open_jobs
from lvlm_guard.evals.crew import Crew
from lvlm_guard.evals.demo_tasks import Setting, prepare_run
from lvlm_guard.evals.errors import RunError

SETTING = Setting(str(MODEL), pictures=1, captions=2, seeds=1, batch=8)


@pytest.fixture(scope="module")
def run():
    return prepare_run(SETTING)


@pytest.fixture(scope="module")
def crew():
    with Crew(SETTING, 2) as two:
        yield two


def test_workers_give_the_answers_of_one_process(run, crew, tmp_path):
    tasks = list(run.tasks.values())
    alone, together = (Answers(tmp_path / name, tasks, SETTING.batch) for name in ("alone", "together"))
    ask_all(run.asker, alone)
    for job, found in crew.work(open_jobs(together)):
        for (name, seed), texts in zip(job.todo, found, strict=True):
            together.add((name, job.task, seed, job.block), texts)
    for task in tasks:
        for decoder in task.decoders:
            assert together.of(decoder, task, 0) == alone.of(decoder, task, 0), decoder.name
    assert open_jobs(together) == []


def test_a_worker_that_dies_is_an_error_with_its_last_words(crew):
    job = Job("pope", 0, (("no such decoder", 0),))
    with pytest.raises(RunError, match=r"answered block 0 of pope: KeyError: 'no such decoder'.*workers=0"):
        list(crew.work([job]))


def test_a_worker_that_is_killed_is_an_error_too():
    with Crew(SETTING, 1) as one:
        one._workers[0].process.send_signal(signal.SIGKILL)
        with pytest.raises(RunError, match="ended from outside"):
            list(one.work([Job("pope", 0, (("greedy", 0),))]))


SCRIPT = """
import sys
from lvlm_guard.evals import demo
demo.run(sys.argv[1], pictures=8, captions=4, seeds=3, batch=8, workers=2, bar=False,
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
    note = json.loads((tmp_path / "run.json").read_text())
    assert note["finished"] is False
    assert note["settings"]["pictures"] == 8
    assert len(answered.read_text().splitlines()) % 8 == 0


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return b"evals.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
