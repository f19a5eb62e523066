"""One rank among several that share a run's questions, and ranks that a command starts by itself.

`torchrun` says who a process is by RANK, WORLD_SIZE and LOCAL_RANK; `--workers N` starts N processes in the same way:

    torchrun --nproc-per-node 8 -m lvlm_guard eval ask --model M --out runs/first
    python -m lvlm_guard.evals.infer.ranks runs/first     what a worker runs; the settings are in asked.json
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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


@dataclass(frozen=True)
class Place:
    """Which share of the questions a process asks."""

    rank: int = 0
    world: int = 1  # processes that share the questions
    local: int = 0  # rank on its machine, which tells its device

    @classmethod
    def here(cls) -> Place:
        """Return the place that torchrun gave this process; the only one where it gave none.

        Raises:
            RunError: RANK and WORLD_SIZE don't fit together.
        """
        told = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
        if told[0] is None or told[1] is None:
            return cls()
        try:
            place = cls(int(told[0]), int(told[1]), int(told[2] or 0))
        except ValueError:
            place = cls(-1)
        if not 0 <= place.rank < place.world:
            raise RunError(f"RANK={told[0]} and WORLD_SIZE={told[1]} are no rank and number of ranks: unset them.")
        return place

    def device(self, wanted: str) -> str:
        """Return the device of this rank: "auto" is a GPU of its own where there are several."""
        if wanted != "auto" or self.world == 1:
            return wanted
        import torch

        return f"cuda:{self.local % torch.cuda.device_count()}" if torch.cuda.is_available() else wanted


def usual_workers() -> int:
    """Return how many workers suit this machine: one for each core, at most `MOST`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST, cores))


@contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """Compute with one thread within, where wanted: threads of a tiny model wait for each other.

    All ranks of the embedded model compute so, and sums come out alike.
    """
    import torch

    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class _Worker:
    """A rank that was started here; `at` is how far its shard was read, `heard` when it last grew."""

    rank: int
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    shard: Path
    at: int = 0
    heard: float = field(default_factory=time.monotonic)
    gone: bool = False


def run_ranks(
    folder: Path,
    count: int,
    answered: Callable[[int], object],
    echo: Callable[[str], object],
    patience: float = PATIENCE,
) -> None:
    """Start as many ranks over a folder that has its `asked.json`, and wait for them.

    Args:
        answered: told how many answers have come.
        echo: told of a rank that ends early; the others go on.
        patience: seconds after which one that answers nothing is ended.

    Raises:
        RunError: one ended early or hung; the message has its last words.
    """
    workers: list[_Worker] = []
    failed: list[str] = []
    try:
        workers += (_start(folder, rank, count) for rank in range(count))
        while not all(worker.gone for worker in workers):
            time.sleep(EVERY)
            for worker in (worker for worker in workers if not worker.gone):
                code = worker.process.poll()
                if new := _new_lines(worker):
                    answered(new)
                if code is None and time.monotonic() - worker.heard > patience:
                    worker.process.kill()
                    code = worker.process.wait()
                    failed.append(f"Worker {worker.rank} gave no answer for {patience:g} s and was ended.")
                elif code:
                    failed.append(_last_words(worker, code))
                worker.gone = code is not None
                if code and failed and len(failed) == 1 and not all(other.gone for other in workers):
                    echo(f"{failed[0]} The others go on.")
    finally:
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.wait()
            for stream in (worker.process.stdin, worker.log):
                if stream is not None:
                    with suppress(BrokenPipeError):
                        stream.close()
    if failed:
        raise RunError(f"{failed[0]} {KEPT} With --workers 1 everything runs in one process.")


def _start(folder: Path, rank: int, count: int) -> _Worker:
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
    return _Worker(rank, process, log, shard, shard.stat().st_size if shard.is_file() else 0)


def _new_lines(worker: _Worker) -> int:
    """Return how many lines a worker has written since the last look."""
    try:
        with worker.shard.open("rb") as file:
            worker.at = min(worker.at, file.seek(0, os.SEEK_END))  # it may have dropped a torn line
            file.seek(worker.at)
            new = file.read()
    except FileNotFoundError:  # not begun, or the last one made a table of all
        return 0
    if new:
        worker.at, worker.heard = worker.at + len(new), time.monotonic()
    return new.count(b"\n")


def _last_words(worker: _Worker, code: int) -> str:
    worker.log.seek(0)
    words = worker.log.read().decode(errors="replace").strip().splitlines()[-1:]
    if code == 1 and words:
        return f"Worker {worker.rank}: {words[0].rstrip('.')}."
    why = "was ended from outside, mostly for want of memory" if code < 0 else f"stopped with code {code}"
    return f"Worker {worker.rank} {why}" + (f": {words[0]}" if words else ".")


def _end_with_parent() -> None:
    """Wait for the end of standard input, which is the end of the process that started this one."""
    while os.read(0, 1):  # unbuffered: a lock on sys.stdin would be in the way of an ordinary end
        pass
    os._exit(3)


def main() -> None:
    """Ask this rank's share of a folder's questions."""
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
