"""Several workers that answer blocks side by side, each a process of its own with one thread.

The embedded model is so small that the threads of one call mostly wait for each other: two processes
of one thread answer about twice as much as one process of two.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from types import TracebackType
from typing import IO

import lvlm_guard
from lvlm_guard.evals.errors import RunError
from lvlm_guard.evals.infer.store import Job
from lvlm_guard.evals.spec.items import Said
from lvlm_guard.evals.spec.settings import Settings

MEMORY = {"MALLOC_MMAP_THRESHOLD_": "2000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
"""Keeps glibc from handing each block's tensors back to the system: a tenth of the time went into page faults."""

Reply = tuple[Job, list[list[Said]]]

MOST = 4  # workers that are started unasked; each holds about half a gigabyte


def usual_workers() -> int:
    """Return how many workers suit this machine: one for each core, at most `MOST`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST, cores))


@dataclass
class _Worker:
    process: subprocess.Popen[str]
    log: IO[bytes]


class Crew:
    """Workers for one run; use as a context manager, which ends them.

    Args:
        settings: of the run, the same for all.
        count: how many workers.
    """

    def __init__(self, settings: Settings, count: int) -> None:
        # Ctrl-C reaches this process alone: it ends the workers when it has written what it has
        self._workers = [self._start(settings) for _ in range(count)]

    def _start(self, settings: Settings) -> _Worker:
        root = str(Path(lvlm_guard.__file__).parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false"}
        log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        process = subprocess.Popen(
            [sys.executable, "-m", "lvlm_guard.evals.infer.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            env={**environment, **MEMORY, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            start_new_session=True,
        )
        worker = _Worker(process, log)
        _tell(worker, json.dumps(settings.to_dict()))
        return worker

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
            for stream in (worker.process.stdin, worker.process.stdout, worker.log):
                if stream is not None:
                    with suppress(BrokenPipeError):  # what it was just told, it will not hear
                        stream.close()

    def work(self, jobs: Sequence[Job]) -> Iterator[Reply]:
        """Yield each job with its answers, as they come.

        Raises:
            RunError: a worker ended early; the message has its last words.
        """
        waiting: Queue[Job] = Queue()
        for job in jobs:
            waiting.put(job)
        finished: Queue[Reply | RunError] = Queue()
        for worker in self._workers:
            Thread(target=self._serve, args=(worker, waiting, finished), daemon=True).start()
        for _ in jobs:
            found = _interruptible(finished)
            if isinstance(found, RunError):
                raise found
            yield found

    def _serve(self, worker: _Worker, waiting: Queue[Job], finished: Queue[Reply | RunError]) -> None:
        while True:
            try:
                job = waiting.get_nowait()
            except Empty:
                return
            reply = _tell(worker, json.dumps(asdict(job))) and _reply(worker)
            if not reply or not reply.endswith("\n"):
                finished.put(RunError(_last_words(worker, job)))
                return
            finished.put((job, [[Said(**said) for said in each] for each in json.loads(reply)]))


def _interruptible(queue: Queue[Reply | RunError]) -> Reply | RunError:
    while True:
        try:
            return queue.get(timeout=0.5)  # a wait without end would not hear Ctrl-C on every system
        except Empty:
            continue


def _tell(worker: _Worker, line: str) -> bool:
    assert worker.process.stdin is not None
    try:
        worker.process.stdin.write(line + "\n")
        worker.process.stdin.flush()
    except (BrokenPipeError, ValueError):
        return False
    return True


def _reply(worker: _Worker) -> str:
    assert worker.process.stdout is not None
    try:
        return worker.process.stdout.readline()
    except ValueError:  # closed while we waited: the run was stopped
        return ""


def _last_words(worker: _Worker, job: Job) -> str:
    try:
        code = worker.process.wait(timeout=5)
        worker.log.seek(0)
        words = worker.log.read().decode(errors="replace").strip().splitlines()[-1:]
    except (subprocess.TimeoutExpired, ValueError):
        code, words = None, []
    why = "was ended from outside, mostly for want of memory" if code and code < 0 else f"stopped with code {code}"
    return (
        f"A worker {why} while it answered block {job.block} of {job.task}"
        + (f": {words[0]}" if words else ".")
        + " The answers so far are kept; the same command goes on from there. With --workers 1 everything runs in one "
        "process."
    )
