"""Asking: every decoder over the same questions, alone or as one of many ranks, resumable at any moment.

    from lvlm_guard.evals.infer.ask import ask
    folder = ask(Settings(methods=("agla", "vote")), "runs/first")    # then stats.score, then report

All answers come from the public API: `guard(model, processor)`, then `generate(**inputs, guard=...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lvlm_guard.evals.decoders.lineup import decoders_of
from lvlm_guard.evals.decoders.matchers import check_matchers
from lvlm_guard.evals.errors import DataError, RunError
from lvlm_guard.evals.infer import record
from lvlm_guard.evals.infer.generate import Asker
from lvlm_guard.evals.infer.prepare import prepare_run
from lvlm_guard.evals.infer.progress import Meter
from lvlm_guard.evals.infer.ranks import KEPT, PATIENCE, Place, one_thread, run_ranks, usual_workers
from lvlm_guard.evals.infer.store import Answers, Asked, Column, Job, Who
from lvlm_guard.evals.spec.answers import CALIBRATED
from lvlm_guard.evals.spec.items import YES_NO, EvalTask, Said
from lvlm_guard.evals.spec.settings import EMBEDDED, Settings
from lvlm_guard.evals.tasks import tasks_of

MANY = 64  # questions of a call of the embedded model, unasked
AT_ONCE = 16  # requests in flight at a server, unasked


def usual_batch(settings: Settings) -> int:
    """Return the batch that suits a model unasked: one question at a time, but many for the embedded one."""
    return MANY if settings.model == EMBEDDED and not settings.server else 1


def ask(
    settings: Settings,
    out: str | Path,
    *,
    echo: Callable[[str], object] = print,
    bar: bool | None = None,
    workers: int | None = None,
    concurrency: int | None = None,
    started_over: bool = False,
    command: str = "eval ask",
    replaces: bool = False,
    patience: float = PATIENCE,
) -> Path:
    """Ask every decoder and return the folder, whose table of answers is whole.

    A run that ended early, however it ended, goes on where it stopped when it is started again with the same settings,
    with whatever number of processes, and ends in the same bytes. Under torchrun a process asks its share alone, and
    the last to finish makes the table of all; then, and only then, the folder may not be whole on return. Shards of
    several machines, copied into one folder, become its table by one more call.

    Args:
        settings: what decides the answers.
        out: folder of the run.
        echo: told what happens, a line at a time; by rank 0 alone.
        bar: whether to draw a progress bar on the error stream; None: if it is a terminal.
        workers: processes that answer side by side; None: one a core for the embedded model, else one. The answers are
            the same.
        concurrency: requests in flight at a server; None: `AT_ONCE`.
        started_over: drop what an earlier run left in the folder.
        command: what the run is called in its files.
        replaces: drop another run of this command in the folder, instead of refusing.
        patience: seconds after which a worker that answers nothing is ended.

    Raises:
        DataError: files or pictures are missing or wrong, or the folder holds another run.
        UnknownNameError, WeightsError, KnobError: of a matcher, method, task or model.
        RunError: a worker ended early or hung, the disk is full, or a server answers nothing.
        KeyboardInterrupt: after a line that says where the answers are.
    """
    folder, place = Path(out), Place.here()
    _check(settings)
    at_once = concurrency or max(settings.batch, AT_ONCE)
    if settings.server:  # where each request is a block of its own
        settings = replace(settings, batch=1)
    if place.world > 1 and started_over:
        raise DataError(f"{place.world} ranks can't agree on when to drop {folder}: remove it first, then start them.")
    say = echo if place.rank == 0 else _nothing
    tasks = tasks_of(settings)
    decoders_of(settings, None)  # names and knobs before a model, which may take minutes to load
    note = record.begin(folder, settings, tasks, command, started_over=started_over, replaces=replaces)
    _say_tasks(tasks, say)
    if _left(folder, note, tasks, settings):
        with _interruptible(folder, echo):
            helpers = 1 if settings.server or place.world > 1 else _workers(settings) if workers is None else workers
            if helpers > 1:
                _side_by_side(folder, tasks, settings, helpers, say, bar, patience)
            else:
                _share(folder, tasks, settings, place, at_once, say, bar)
    _finish(folder, tasks, settings, place, say)
    return folder


def asked_of(tasks: Sequence[EvalTask], decoders: Sequence[Mapping[str, Any]]) -> list[Asked]:
    """Return what is asked of whom: each task, and its calibration items after it.

    What is derived from another decoder's answers is not asked.

    Args:
        tasks: of the run.
        decoders: as they describe themselves.
    """
    return [
        Asked(
            part,
            tuple(
                Column(d["name"], d["role"], d["baseline"], d["seeds"])
                for d in decoders
                if not d["derive"]
                and (part.kind in YES_NO or not d["yes_no_only"])
                and (part is task or d["role"] in CALIBRATED)
            ),
        )
        for task in tasks
        for part in task.parts()
    ]


def _check(settings: Settings) -> None:
    if settings.sweep and settings.split != "val":
        raise DataError(
            "A sweep chooses settings, so it runs on the validation split and never on the test split: give "
            "split='val' (`--split val`), then run the chosen setting once on the test split."
        )
    check_matchers(settings.matchers)
    if settings.batch < 1 or settings.seeds < 1:
        raise DataError(f"batch and seeds are at least 1; got batch={settings.batch}, seeds={settings.seeds}.")
    for name in ("limit", "captions"):
        value = getattr(settings, name)
        if value is not None and (isinstance(value, float) or value < 1):
            raise DataError(f"{name} counts pictures: give a whole number of at least 1; got {value}.")


def _say_tasks(tasks: Sequence[EvalTask], echo: Callable[[str], object]) -> None:
    for task in tasks:
        pictures = len({item.picture for item in task.items})
        beside = f", {len(task.calibration)} of the val split beside" if task.calibration else ""
        echo(f"{task.name}: {len(task.items)} items on {pictures} pictures, {task.split} split{beside}.")


def _workers(settings: Settings) -> int:
    return usual_workers() if settings.model == EMBEDDED else 1


def _left(folder: Path, note: record.Note | None, tasks: Sequence[EvalTask], settings: Settings) -> bool:
    """Return whether there is something to ask; before a model was loaded there is no telling, so there is."""
    if note is None or "decoders" not in note:
        return True
    return Answers(folder, asked_of(tasks, note["decoders"]), settings.batch).left > 0


def _share(
    folder: Path,
    tasks: Sequence[EvalTask],
    settings: Settings,
    place: Place,
    concurrency: int,
    echo: Callable[[str], object],
    bar: bool | None,
) -> None:
    """Ask this process's share of the questions."""
    single = one_thread(settings.model == EMBEDDED and not settings.server)
    with record.hold(folder, place.rank, place.world), single:
        prepared = prepare_run(settings, tasks, place.device(settings.device), concurrency)
        note = record.with_answering(folder, prepared.describe())
        answers = Answers(folder, asked_of(tasks, note["decoders"]), settings.batch)
        if answers.whole and not answers.left:
            return
        total = sum(job.size for job in answers.jobs(place.rank, place.world))
        beside = f" of {answers.total}, as rank {place.rank} of {place.world}" if place.world > 1 else ""
        _say_what(answers, len(note["decoders"]), total, beside, echo)
        with answers.open(place.rank), Meter(total, "answers", echo, bar) as meter:

            def took(job: Job, who: Who, said: Sequence[Said]) -> None:
                answers.add(job, who, said)
                meter.advance(len(said), job.task.name)

            jobs = answers.jobs(place.rank, place.world)
            if isinstance(prepared.answerer, Asker):
                for job in jobs:
                    for who in job.todo:
                        (said,) = prepared.answerer.ask(job.task, job.items, [who])
                        took(job, who, said)
            else:
                prepared.answerer.ask_all(jobs, took)


def _side_by_side(
    folder: Path,
    tasks: Sequence[EvalTask],
    settings: Settings,
    workers: int,
    echo: Callable[[str], object],
    bar: bool | None,
    patience: float,
) -> None:
    """Have ranks of our own ask; their progress is the growth of their shards."""
    meter: Meter | None = None

    def answered(count: int) -> None:
        nonlocal meter
        if meter is None:  # who answers is known once the first worker has loaded its model
            note = record.read_note(folder)
            assert note is not None
            answers = Answers(folder, asked_of(tasks, note["decoders"]), settings.batch)
            left = answers.left + count
            _say_what(answers, len(note["decoders"]), left, f", by {workers} workers", echo)
            meter = Meter(left, "answers", echo, bar).__enter__()
        meter.advance(count)

    try:
        run_ranks(folder, workers, answered, echo, patience)
    finally:
        if meter is not None:
            meter.__exit__(None, None, None)


def _say_what(answers: Answers, decoders: int, left: int, how: str, echo: Callable[[str], object]) -> None:
    if answers.total > answers.left:
        echo(f"{answers.total - answers.left} of {answers.total} answers are there already.")
    echo(f"Asking {decoders} decoders: {left} answers{how}.")


def _finish(
    folder: Path, tasks: Sequence[EvalTask], settings: Settings, place: Place, echo: Callable[[str], object]
) -> None:
    """Make the table of all shards, or leave that to the rank that finishes last."""
    with record.alone(folder):
        note = record.read_note(folder)
        if note is None or "decoders" not in note:
            return
        answers = Answers(folder, asked_of(tasks, note["decoders"]), settings.batch)
        if answers.whole:
            answers.drop_shards()
        elif answers.covered:
            answers.compact()
        elif place.world == 1:
            raise RunError(f"{answers.left} of {answers.total} answers are missing in {folder}. {KEPT}")
        else:
            echo(f"{answers.left} of {answers.total} answers are left to other ranks.")


@contextmanager
def _interruptible(folder: Path, echo: Callable[[str], object]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        echo(f"Stopped. The answers so far are in {folder / 'answers'}; the same command goes on from there.")
        raise


def _nothing(_: str) -> None:
    pass
