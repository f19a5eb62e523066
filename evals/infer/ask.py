"""Asking: every decoder over the same questions, alone or as one of many ranks, resumable at any moment.

    from lvlm_guard.evals.infer.ask import ask
    folder = ask(Settings(methods=("agla", "vote")), "runs/first")    # then stats.score, then report

All answers come from the public API: `guard(model, processor)`, then `generate(**inputs, guard=...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lvlm_guard.evals.decoders.lineup import decoders_of
from lvlm_guard.evals.decoders.matchers import check_matchers
from lvlm_guard.evals.errors import DataError, RunError
from lvlm_guard.evals.infer import record
from lvlm_guard.evals.infer.generate import Prepared, prepare_run
from lvlm_guard.evals.infer.ranks import KEPT, one_thread, run_ranks, usual_workers
from lvlm_guard.evals.infer.store import Answers, Asked, Job, Who
from lvlm_guard.evals.spec.answers import CALIBRATED
from lvlm_guard.evals.spec.items import YES_NO, EvalTask, Said
from lvlm_guard.evals.spec.settings import EMBEDDED, Settings
from lvlm_guard.evals.tasks import tasks_of
from lvlm_guard.progress import Advance, progress
from lvlm_guard.ranks import Place

MANY = 64  # questions of a call of the embedded model, unasked
AT_ONCE = 16  # requests in flight at a server, unasked
EVERY = 15.0  # seconds between lines that say how far a run is


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
    prepared: Prepared | None = None,
    beside: Sequence[str] = (),
) -> Path:
    """Ask every decoder and return the folder, whose table of answers is whole.

    A run that ended early, however it ended, goes on where it stopped when it is started again with the same settings,
    with whatever number of processes, and ends in the same bytes. Under torchrun a process asks its share alone, and
    the last to finish makes the table of all; then, and only then, the folder may not be whole on return. Shards of
    several machines, copied into one folder, become its table by one more call.

    Args:
        echo, bar: told what happens, a line at a time, by rank 0 alone; whether to draw a bar (None: on a terminal).
        workers: processes that answer side by side; None: one a core for the embedded model, else one.
        concurrency: requests in flight at a server; None: `AT_ONCE`.
        started_over, replaces: drop what is in the folder: any run, or another one of this `command`.
        prepared: who answers what, where that is at hand: in this process alone, and held against who did before.
        beside: further code that decides the answers, see `code_digest`.

    Raises `DataError` (files or pictures are missing or wrong, or the folder holds another run), `RunError` (a worker
    ended early or hung, the disk is full, a server answers nothing), and what methods, matchers, tasks and models
    raise.
    """
    place = Place.here()
    _check(settings)
    if settings.server:  # where each request is a block of its own
        concurrency, settings = concurrency or max(settings.batch, AT_ONCE), replace(settings, batch=1)
    if place.world > 1 and started_over:
        raise DataError(f"{place.world} ranks can't agree on when to drop {out}: remove it first, then start them.")
    tasks = tasks_of(settings) if prepared is None else prepared.tasks
    if prepared is None:
        decoders_of(settings, None)  # names and knobs before a model, which may take minutes to load
    told, bar = (echo, bar) if place.rank == 0 else (lambda _: None, False)
    run = _Run(Path(out), settings, tasks, place, told, bar)
    how = {"started_over": started_over, "replaces": replaces}
    note = record.begin(run.folder, settings, tasks, command, beside=beside, **how)
    for task in tasks:
        pictures = len({item.picture for item in task.items})
        more = f", {len(task.calibration)} of the val split beside" if task.calibration else ""
        told(f"{task.name}: {len(task.items)} items on {pictures} pictures, {task.split} split{more}.")
    if prepared or "decoders" not in note or run.answers().left:
        usual = usual_workers() if settings.model == EMBEDDED else 1
        helpers = 1 if settings.server or place.world > 1 else usual if workers is None else workers
        try:
            if helpers > 1 and prepared is None:
                run.side_by_side(helpers)
            else:
                run.share(concurrency or 1, prepared)
        except KeyboardInterrupt:
            echo(f"Stopped. The answers so far are in {run.folder / 'answers'}; the same command goes on from there.")
            raise
    else:
        told("All answers are there already.")
    run.finish()
    return run.folder


def asked_of(tasks: Sequence[EvalTask], decoders: Sequence[Mapping[str, Any]]) -> list[Asked]:
    """Return what is asked of which decoders, as they describe themselves: each task, then its calibration items. Those
    only choose a control and a threshold, for which one seed of each decoder does."""
    asking, found = [d for d in decoders if not d["derive"]], []
    for part, calibrates in ((part, part is not task) for task in tasks for part in task.parts()):
        able = asking if part.kind in (*YES_NO, "mentions") else [d for d in asking if not d["yes_no_only"]]
        if calibrates:
            able = [{**d, "seeds": 1} for d in able if d["role"] in CALIBRATED]
        found.append(Asked(part, able))
    return found


def _check(settings: Settings) -> None:
    if settings.sweep and settings.split != "val":
        raise DataError("A sweep chooses settings, so it runs on the validation split alone: give --split val.")
    check_matchers(settings.matchers)
    if settings.batch < 1 or settings.seeds < 1:
        raise DataError(f"batch and seeds are at least 1; got batch={settings.batch}, seeds={settings.seeds}.")
    for name in ("limit", "captions"):
        value = getattr(settings, name)
        if value is not None and (isinstance(value, float) or value < 1):
            raise DataError(f"{name} counts pictures: give a whole number of at least 1; got {value}.")


@dataclass(frozen=True)
class _Run:
    folder: Path
    settings: Settings
    tasks: Sequence[EvalTask]
    place: Place
    echo: Callable[[str], object]
    bar: bool | None

    def answers(self) -> Answers:
        # once a model was loaded: who answers is noted then
        decoders = (record.read_note(self.folder) or {})["decoders"]
        return Answers(self.folder, asked_of(self.tasks, decoders), self.settings.batch)

    def share(self, concurrency: int, prepared: Prepared | None) -> None:
        settings, (rank, world) = self.settings, (self.place.rank, self.place.world)
        single = one_thread(settings.model == EMBEDDED and not settings.server)
        with record.hold(self.folder, rank, world), single, ExitStack() as stack:
            prepared = prepared or prepare_run(settings, self.tasks, self.place.device(settings.device), concurrency)
            record.with_answering(self.folder, prepared.describe())
            answers = self.answers()
            if total := sum(job.size for job in answers.jobs(rank, world)):
                advance = self._meter(stack, answers, total, f", as rank {rank} of {world}" if world > 1 else "")
                stack.enter_context(answers.open(rank))

                def took(job: Job, who: Who, said: Sequence[Said]) -> None:
                    answers.add(job, who, said)
                    advance(len(said), job.task.name)

                prepared.answerer.ask_all(answers.jobs(rank, world), took)
            elif not answers.left:
                self.echo("All answers are there already.")

    def side_by_side(self, workers: int) -> None:
        with ExitStack() as stack:
            meters: list[Advance] = []

            def answered(count: int) -> None:
                if not meters:  # who answers is known once the first worker has loaded its model
                    answers = self.answers()
                    meters.append(self._meter(stack, answers, answers.left + count, f", by {workers} workers"))
                meters[0](count)

            run_ranks(self.folder, workers, answered, self.echo)

    def finish(self) -> None:
        """Make the table of all shards, or leave that to the rank that finishes last."""
        with record.alone(self.folder):
            answers = self.answers()
            busy = answers.left and record.busy(self.folder)  # what failed may be asked again there: its shard is open
            if answers.covered and not busy:
                answers.compact()
            elif self.place.world == 1 and not busy:
                raise RunError(f"{answers.left} of {answers.total} answers are missing in {self.folder}. {KEPT}")
            else:
                self.echo(f"{answers.left} of {answers.total} answers are left to other ranks.")

    def _meter(self, stack: ExitStack, answers: Answers, left: int, how: str) -> Advance:
        if answers.total > answers.left:
            self.echo(f"{answers.total - answers.left} of {answers.total} answers are there already.")
        decoders = len({d["name"] for part in answers.asked for d in part.decoders})
        self.echo(f"Asking {decoders} decoders: {left} answers{how}.")
        return stack.enter_context(progress("answers", left, self.echo, self.bar, EVERY))
