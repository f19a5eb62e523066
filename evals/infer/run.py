"""One evaluation run: every decoder over the same questions, resumable at any moment, scored and reported.

    from lvlm_guard.evals.infer.run import run
    done = run(Settings(methods=("agla", "vote")), "runs/first")

All answers come from the public API: `guard(model, processor)`, then `generate(**inputs, guard=...)`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lvlm_guard
from lvlm_guard.evals.decoders.decoder import REFERENCE
from lvlm_guard.evals.decoders.differences import compared
from lvlm_guard.evals.decoders.matchers import check_matchers
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.infer.crew import Crew, usual_workers
from lvlm_guard.evals.infer.folder import alone, begin, with_answering, write_begun
from lvlm_guard.evals.infer.identity import environment
from lvlm_guard.evals.infer.prepare import Prepared, prepare_run
from lvlm_guard.evals.infer.progress import Meter
from lvlm_guard.evals.infer.store import Answers
from lvlm_guard.evals.infer.threads import one_thread
from lvlm_guard.evals.metrics.stock import with_metrics
from lvlm_guard.evals.report.saved import Saved, read_run, write_run, write_samples
from lvlm_guard.evals.spec.items import EvalTask
from lvlm_guard.evals.spec.settings import EMBEDDED, Settings
from lvlm_guard.evals.stats.costs import cost_rows, work_rows
from lvlm_guard.evals.stats.results import trainings
from lvlm_guard.evals.stats.score import score_run
from lvlm_guard.evals.stats.validity import verdict
from lvlm_guard.evals.tasks import tasks_of

MANY = 64  # questions of a call of the embedded model, unasked


@dataclass(frozen=True)
class Allowed:
    """Shares of answers that may be empty, or cut at the token limit, before a run is void."""

    empty: float = 0.0
    truncated: float = 0.0


def usual_batch(settings: Settings) -> int:
    """Return the batch that suits a model unasked: one question at a time, but many for the embedded one."""
    return MANY if settings.model == EMBEDDED and not settings.server else 1


def run(
    settings: Settings,
    out: str | Path,
    *,
    echo: Callable[[str], object] = print,
    bar: bool | None = None,
    workers: int | None = None,
    allowed: Allowed = Allowed(),
    report: bool = True,
    page: Callable[[Prepared, Saved], Path] | None = None,
    started_over: bool = False,
    command: str = "eval run",
    replaces: bool = False,
) -> Saved:
    """Ask every decoder, score the answers, and write `run.json`, `samples.jsonl` and `report.html`.

    Answers go to `out/answers` as they come. A run that ended early, however it ended, goes on where it stopped when
    it is started again with the same settings, with the same final numbers; a finished one is scored again.

    Args:
        settings: what decides the answers.
        out: folder of the run.
        echo: told what happens, a line at a time.
        bar: whether to draw a progress bar on the error stream; None: if it is a terminal.
        workers: processes that answer side by side; None: one a core for the embedded model, else one. The
            answers are the same.
        allowed: shares of empty and cut answers that do not make the run void.
        report: whether to collect evidence and write the page.
        page: writes another page than the report.
        started_over: drop what an earlier run left in the folder.
        command: what the run is called in its files.
        replaces: drop another run of this command in the folder, instead of refusing.

    Raises:
        DataError: files or pictures are missing or wrong, or the folder holds another run.
        UnknownNameError, WeightsError, KnobError: of a matcher, method, task or model.
        RunError: a worker ended early, the disk is full, or a server answers nothing.
        KeyboardInterrupt: after a line that says where the answers are.
    """
    folder = Path(out)
    _check(settings)
    with alone(folder):
        tasks = tasks_of(settings)
        helpers = _workers(settings) if workers is None else max(1, workers)
        begun = begin(folder, settings, tasks, command, started_over, replaces)
        _say_tasks(tasks, echo)
        clock = time.monotonic()
        with one_thread(helpers > 1), Crew(settings, helpers) if helpers > 1 else nullcontext() as crew:
            prepared = prepare_run(settings, tasks)
            begun = with_answering(folder, begun, prepared.describe())
            answers = Answers(folder / "answers", prepared.asked(), settings.batch)
            try:
                _ask(prepared, answers, crew, helpers, echo, bar)
            except BaseException as error:
                write_begun(folder, begun | {"seconds": begun["seconds"] + time.monotonic() - clock})
                if isinstance(error, KeyboardInterrupt):
                    echo(f"Stopped. The answers so far are in {answers.folder}; the same command goes on from there.")
                raise
            asking = begun["seconds"] + time.monotonic() - clock
            write_begun(folder, begun | {"seconds": asking})
            saved = _score(prepared, answers, folder, begun, asking, helpers, allowed)
            if report:
                echo(f"{'Page' if page else 'Report'}: {(page or _report)(prepared, saved)}")
            echo(f"Asked and scored in {begun['seconds'] + time.monotonic() - clock:.0f} s.")
    return saved


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


def _workers(settings: Settings) -> int:
    return usual_workers() if settings.model == EMBEDDED and not settings.server else 1


def _say_tasks(tasks: Sequence[EvalTask], echo: Callable[[str], object]) -> None:
    for task in tasks:
        pictures = len({item.picture for item in task.items})
        echo(f"{task.name}: {len(task.items)} items on {pictures} pictures, {task.split} split.")


def _ask(
    prepared: Prepared,
    answers: Answers,
    crew: Crew | None,
    helpers: int,
    echo: Callable[[str], object],
    bar: bool | None,
) -> None:
    jobs = answers.open_jobs()
    total = sum(answers.size(job) for job in jobs)
    whole = sum(len(each.task.items) * sum(each.seeds.values()) for each in answers.asked.values())
    if total < whole:
        echo(f"{whole - total} of {whole} answers are there already.")
    if not jobs:
        return
    echo(f"Asking {len(prepared.decoders)} decoders: {total} answers, {helpers} at a time.")
    with Meter(total, "answers", echo, bar) as meter:
        if crew is not None:
            for job, found in crew.work(jobs):
                for (name, seed), said in zip(job.todo, found, strict=True):
                    answers.add((name, job.task, seed, job.block), said)
                    meter.advance(len(said), job.task)
            return
        for job in jobs:
            task = answers.asked[job.task].task
            items = task.block(job.block, answers.batch)
            for name, seed in job.todo:
                (said,) = prepared.answerer.ask(task, items, [(name, seed)])
                answers.add((name, job.task, seed, job.block), said)
                meter.advance(len(said), job.task)


def _score(
    prepared: Prepared,
    answers: Answers,
    folder: Path,
    begun: Mapping[str, Any],
    seconds: float,
    helpers: int,
    allowed: Allowed,
) -> Saved:
    samples, undefined = with_metrics(prepared.tasks, samples_of(answers))
    settings = prepared.settings
    tasks = [task.describe() for task in prepared.tasks]
    decoders = [decoder.describe() for decoder in prepared.decoders]
    found = verdict(samples, tasks, decoders, allow_empty=allowed.empty, allow_truncated=allowed.truncated)
    content: dict[str, Any] = {
        "command": begun["command"],
        "version": lvlm_guard.__version__,
        "status": "void" if found.void else "complete",
        "void": found.void,
        "warnings": [
            *found.warnings,
            *undefined,
            *_task_warnings(tasks),
            *_undrawn(tasks, decoders),
            *_own_warnings(settings),
        ],
        "flags": [*_flags(settings, allowed), *prepared.flags],
        "allowed": asdict(allowed),
        "settings": settings.to_dict(),
        "decoders": decoders,
        "tasks": tasks,
        "environment": environment() | {"matcher": prepared.matcher} | prepared.where,
        "code": begun["code"],
        "weights": begun["weights"],
        "reference": REFERENCE,
        "compared": [list(pair) for pair in compared(prepared.decoders)],
        "sweep": _sweep(prepared),
        "rows": [],
    }
    if not found.void:  # an answer that failed, is empty or was cut must not be taken for a wrong one
        content["rows"] = [*score_run(content, samples), *work_rows(settings.model, answers)]
    content["times"] = {
        "started": begun["started"],
        "seconds": round(seconds, 1),
        "workers": f"{helpers} of one thread" if helpers > 1 else "1",
        "rows": cost_rows(settings.model, answers, REFERENCE),
    }
    write_samples(folder, samples)
    write_run(folder, content)
    return read_run(folder)


def samples_of(answers: Answers) -> list[dict[str, Any]]:
    """Return one row an item, with every decoder's answers, as they stand in `samples.jsonl`."""
    samples = []
    for name, each in answers.asked.items():
        said = {d: [answers.of(d, name, seed) for seed in range(seeds)] for d, seeds in each.seeds.items()}
        for index, item in enumerate(each.task.items):
            got = {d: [runs[index] for runs in of_seeds] for d, of_seeds in said.items()}
            samples.append(
                {
                    "task": name,
                    "kind": each.task.kind,
                    "key": item.key,
                    "picture": item.picture,
                    "prompt": item.prompt,
                    "question": item.question or item.prompt,
                    "truth": item.truth,
                    "rows": list(item.rows),
                    "tags": dict(item.tags),
                    "answers": {d: [one.text if one else "" for one in ones] for d, ones in got.items()},
                    "ended": {d: [one.ended if one else True for one in ones] for d, ones in got.items()},
                    "failed": {d: [one.failed if one else "never answered" for one in ones] for d, ones in got.items()},
                }
            )
    return samples


def _task_warnings(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    return [warning for task in tasks for warning in task["about"].get("warnings", ())]


def _undrawn(tasks: Sequence[Mapping[str, Any]], decoders: Sequence[Mapping[str, Any]]) -> list[str]:
    stock = [task["name"] for task in tasks if task["kind"] == "stock"]
    if not stock or all(trainings(decoder) == 1 for decoder in decoders):
        return []
    return [f"{', '.join(stock)}: trainings are averaged, so their intervals hold the luck of the pictures alone."]


def _own_warnings(settings: Settings) -> list[str]:
    if settings.batch > 1 and settings.dtype in ("bfloat16", "float16"):
        return [
            f"Answers were made {settings.batch} at a time in {settings.dtype}: in half precision the batch can change "
            "an answer. Published tables use one at a time."
        ]
    return []


def _flags(settings: Settings, allowed: Allowed) -> list[str]:
    flags = []
    if not settings.controls:
        flags.append("--no-controls: sampling, APC-only and the methods' own controls were switched off.")
    if settings.limit is not None:
        flags.append(f"--limit {settings.limit}: the first pictures of each task only.")
    if settings.preset:
        flags.append(f"--preset {settings.preset}: prompt and sampling of that publication.")
    for name, share in (("empty", allowed.empty), ("truncated", allowed.truncated)):
        if share:
            flags.append(f"--allow-{name} {share:g}: so large a share of {name} answers does not make the run void.")
    return flags


def _sweep(prepared: Prepared) -> dict[str, Any] | None:
    if not prepared.settings.sweep:
        return None
    points = [{"decoder": d.name, "method": d.method, "knobs": dict(d.point)} for d in prepared.decoders if d.point]
    return {"method": list(dict.fromkeys(point["method"] for point in points)), "points": points}


def _report(prepared: Prepared, saved: Saved) -> Path:
    from lvlm_guard.evals.report.evidence import choose, collect
    from lvlm_guard.evals.report.page import write_report

    collect(prepared.answerer, prepared.tasks, choose(saved.samples, saved.run), saved.folder / "evidence")
    return write_report(saved.folder)
