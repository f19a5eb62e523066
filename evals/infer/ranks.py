"""Ranks that share a run's questions and that a command starts by itself.

`--workers N` starts N processes as torchrun would (`lvlm_guard.ranks`), each of which runs this module over the folder,
whose asked.json has the settings.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import IO

import lvlm_guard
from lvlm_guard.errors import GuardError
from lvlm_guard.evals.errors import RunError

WORKER = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
# keeps glibc from handing each block's tensors back to the system: a tenth of the time went into page faults
WORKER |= {"MALLOC_MMAP_THRESHOLD_": "2000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
MOST = 4  # workers that are started unasked; each holds about half a gigabyte
PATIENCE = 1800.0  # seconds without an answer, loading included, after which a worker is taken to hang
EVERY = 0.2  # seconds between looks at the workers
KEPT = "The answers so far are kept; the same command goes on from there."


def usual_workers() -> int:
    """Return how many workers suit this machine: one for each core, at most `MOST`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST, cores))


@contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """Compute with one thread within, where wanted: a tiny model's wait for each other, and sums come out alike."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1 if wanted else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class Worker:
    """A rank that was started here; `at` is how far its shard was read, `heard` when it last grew."""

    rank: int
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    shard: Path
    at: int = 0
    heard: float = field(default_factory=time.monotonic)

    def new_lines(self) -> int:
        """Return how many lines it has written since the last look."""
        try:
            with self.shard.open("rb") as file:
                self.at = min(self.at, file.seek(0, os.SEEK_END))  # it may have dropped a torn line
                file.seek(self.at)
                new = file.read()
        except FileNotFoundError:  # not begun, or the last one made a table of all
            return 0
        if new:
            self.at, self.heard = self.at + len(new), time.monotonic()
        return new.count(b"\n")

    def trouble(self, patience: float) -> str:
        """Return why it ended early, or was ended now as it hung; "" where it did neither."""
        code = self.process.poll()
        if code is None and time.monotonic() - self.heard > patience:
            self.process.kill()
            self.process.wait()
            return f"Worker {self.rank} gave no answer for {patience:g} s and was ended."
        if not code:
            return ""
        self.log.seek(0)
        words = self.log.read().decode(errors="replace").strip().splitlines()[-1:]
        if code == 1 and words:
            return f"Worker {self.rank}: {words[0].rstrip('.')}."
        why = "was ended from outside, mostly for want of memory" if code < 0 else f"stopped with code {code}"
        return f"Worker {self.rank} {why}" + (f": {words[0]}" if words else ".")


def run_ranks(
    folder: Path,
    count: int,
    answered: Callable[[int], object],
    echo: Callable[[str], object],
    patience: float = PATIENCE,
) -> None:
    """Start as many ranks over a folder that has its `asked.json`, and wait for them. `answered` is told how many
    answers have come, `echo` of a rank that ends early while the others go on. Raises `RunError` (one ended early, or
    answered nothing for `patience` seconds; the message has its last words)."""
    failed: list[str] = []
    with ExitStack() as stack:
        working = []
        for rank in range(count):
            working.append(start(folder, rank, count))
            stack.callback(_end, working[-1])
        while working:
            time.sleep(EVERY)
            for worker in tuple(working):
                ended = worker.process.poll() is not None
                if new := worker.new_lines():
                    answered(new)
                if trouble := worker.trouble(patience):
                    failed.append(trouble)
                if trouble or ended:
                    working.remove(worker)
                if trouble and working and len(failed) == 1:
                    echo(f"{trouble} The others go on.")
    if failed:
        raise RunError(f"{failed[0]} {KEPT} With --workers 1 everything runs in one process.")


def start(folder: Path, rank: int, count: int) -> Worker:
    """Start a rank over a folder; it ends with this process."""
    root = str(Path(lvlm_guard.__file__).parents[1])
    around = {"PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])}
    around |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
    process = subprocess.Popen(
        [sys.executable, "-m", "lvlm_guard.evals.infer.ranks", str(folder)],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        env={**os.environ, **WORKER, **around},
        # Ctrl-C reaches this process alone, which ends its workers
        start_new_session=True,
    )
    shard = folder / "answers" / f"rank-{rank}.jsonl"
    return Worker(rank, process, log, shard, shard.stat().st_size if shard.is_file() else 0)


def _end(worker: Worker) -> None:
    worker.process.kill()
    worker.process.communicate()
    worker.log.close()


def _end_with_parent() -> None:
    while os.read(0, 1):  # until its end of the pipe is gone; a lock on sys.stdin would be in the way of our own end
        pass
    os._exit(3)


def main() -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    from lvlm_guard.evals.infer.ask import ask
    from lvlm_guard.evals.infer.record import read_note
    from lvlm_guard.evals.spec.settings import Settings

    folder = Path(sys.argv[1])
    try:
        note = read_note(folder)
        if note is None:
            raise RunError(f"{folder} has no asked.json.")
        ask(Settings.of(note["settings"]), folder, echo=lambda _: None, bar=False, workers=1)
    except GuardError as error:
        sys.exit(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
