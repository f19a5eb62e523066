"""The demo: every decoder on the embedded world, in one table, with intervals and paired tests.

    from lvlm_guard.evals import demo
    results = demo.run("demo-out")

All answers come from the public API: `guard(model, processor)`, then `generate(**inputs, guard=...)`.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import lvlm_guard
from lvlm_guard.embedded import MATCHER, MODEL
from lvlm_guard.evals.answers import Answers, ask_all, open_jobs
from lvlm_guard.evals.crew import Crew, usual_workers
from lvlm_guard.evals.decoders import COMPARED, REFERENCE
from lvlm_guard.evals.demo_tasks import Setting, measure, prepare_run
from lvlm_guard.evals.progress import Meter
from lvlm_guard.evals.rows import Row, find, long_rows

if TYPE_CHECKING:
    from rich.table import Table

PICTURES, CAPTIONS, SEEDS, BATCH = 240, 320, 3, 64
QUICK_PICTURES, QUICK_CAPTIONS = 24, 24

LIMITS = (
    "The world is drawn and its bias is built in. Props mislead the language model because it was trained on labels "
    "that assume what usually goes with them; it was trained on partly blacked pictures too; the matcher was trained "
    "on clean labels and told to ignore props. So this world meets AGLA's premise, and makes the matcher the better "
    "judge, by design. The figures show that the code does what the methods promise where their premise holds, for "
    "one training seed. They do not show that a method helps a real model: that must be measured on one."
)
"""What this world shows and what it does not; said wherever its figures are."""


@dataclass(frozen=True)
class Results:
    """What a demo found.

    Args:
        rows: scores and differences in long form, see `lvlm_guard.evals.rows`.
        out: folder with the answers, `results.json` and the page.
        page: `demo.html`.
        seconds: time spent asking and scoring, over all sittings of a resumed run.
        settings: what decides the answers.
        environment: where it ran.
    """

    rows: list[Row]
    out: Path
    page: Path
    seconds: float
    settings: dict[str, Any]
    environment: dict[str, str]

    def find(self, method: str, task: str, metric: str) -> Row:
        """Return one row; raises `KeyError` where there is none."""
        row = find(self.rows, method, task, metric)
        if row is None:
            raise KeyError(f"no row for {method}, {task}, {metric}")
        return row

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data: what `--json` prints."""
        return {
            "command": "demo",
            "version": lvlm_guard.__version__,
            "environment": self.environment,
            "settings": self.settings,
            "seconds": round(self.seconds, 1),
            "rows": self.rows,
        }

    def table(self, width: int = 120) -> Table:
        """Return the table for a terminal of `width` columns."""
        from lvlm_guard.evals.demo_table import table

        return table(self.rows, width)

    def remarks(self) -> list[str]:
        """Return what a reader must know of the table, sentence by sentence."""
        from lvlm_guard.evals.demo_table import remarks

        return [*remarks(self.rows), LIMITS]


def run(
    out: str | Path = "demo-out",
    *,
    pictures: int = PICTURES,
    captions: int = CAPTIONS,
    seeds: int = SEEDS,
    batch: int = BATCH,
    quick: bool = False,
    echo: Callable[[str], object] = print,
    bar: bool | None = None,
    workers: int | None = None,
    model: str | Path = MODEL,
) -> Results:
    """Ask every decoder, score the answers, and write the page.

    Answers go to `out/answers` as they come. An interrupted run goes on where it stopped when the same
    command is given again, with the same final numbers; a finished one is done again from the start.

    Args:
        out: folder for answers, results.json and demo.html.
        pictures: scenes of POPE, 18 questions each.
        captions: scenes to caption.
        seeds: runs of sampled decoders and random maps.
        batch: questions of one `generate()` call.
        quick: a few pictures, one seed: shows that it works; the intervals are as wide as that deserves.
        echo: told what happens, a line at a time.
        bar: whether to draw a progress bar on the error stream; None: if it is a terminal.
        workers: processes that answer side by side; None: one a core, at most four. 0 or 1: this process
            alone. The answers are the same.
        model: folder of a model that was trained on the embedded world.

    Raises:
        DataError: there are not as many scenes.
        RunError: a worker process ended early.
        KeyboardInterrupt: after a line that says where the answers are.
    """
    if quick:
        pictures, captions, seeds = min(pictures, QUICK_PICTURES), min(captions, QUICK_CAPTIONS), 1
    folder = Path(out)
    setting = Setting(str(model), pictures, captions, seeds, batch)
    decides = asdict(setting) | {
        "model": "embedded" if Path(model) == MODEL else str(model),
        "code": _code_digest(),
        "weights": _weights_digest([Path(model), MATCHER]),
    }
    began = time.monotonic()
    spent = _earlier_seconds(folder, decides)
    echo(f"{pictures} scenes for POPE and {captions} to caption, all held out from training.")
    helpers = usual_workers() if workers is None else workers
    with _one_thread(), Crew(setting, helpers) if helpers > 1 else nullcontext() as crew:
        run = prepare_run(setting)
        answers = Answers(folder / "answers", list(run.tasks.values()), batch, keep=spent is not None)
        _note(folder, decides, spent or 0.0, finished=False)
        if spent is not None:
            echo(f"Going on with the run in {folder}.")
        jobs = open_jobs(answers)
        total = sum(len(run.tasks[j.task].block(j.block, batch)) * len(j.todo) for j in jobs)
        echo(f"Asking {len(run.tasks['pope'].decoders)} decoders: {total} answers, {max(1, helpers)} at a time.")
        try:
            with Meter(total, "answers", echo, bar) as meter:
                if crew is None:
                    ask_all(run.asker, answers, lambda task, count: meter.advance(count, task))
                else:
                    for job, found in crew.work(jobs):
                        for (name, seed), texts in zip(job.todo, found, strict=True):
                            answers.add((name, job.task, seed, job.block), texts)
                            meter.advance(len(texts), job.task)
        except BaseException as error:
            _note(folder, decides, (spent or 0.0) + time.monotonic() - began, finished=False)
            if isinstance(error, KeyboardInterrupt):
                echo(f"Stopped. The answers so far are in {answers.folder}; the same command goes on from there.")
            raise
        rows = long_rows(str(decides["model"]), measure(run.pope, run.captions, answers), REFERENCE, list(COMPARED))
        seconds = (spent or 0.0) + time.monotonic() - began
        results = Results(rows, folder, folder / "demo.html", seconds, decides, _environment(max(1, helpers)))
        (folder / "results.json").write_text(json.dumps(results.to_dict(), indent=1) + "\n", encoding="utf-8")
        echo(f"Asked and scored in {seconds:.0f} s.")
        from lvlm_guard.evals.demo_page import write

        write(results, run, answers)
        _note(folder, decides, seconds, finished=True)
    return results


def _earlier_seconds(folder: Path, settings: dict[str, Any]) -> float | None:
    """Return the seconds that this very run took before it was interrupted; None where there is no such run."""
    try:
        note = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    same = isinstance(note, dict) and note.get("settings") == settings and not note.get("finished")
    return float(note.get("seconds", 0.0)) if same else None


def _note(folder: Path, settings: dict[str, Any], seconds: float, *, finished: bool) -> None:
    content = {"settings": settings, "seconds": round(seconds, 1), "finished": finished}
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "run.json.part"
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(folder / "run.json")


def _code_digest() -> str:
    """Return a digest of this package's source, so that answers of other code are not taken for this code's."""
    root = Path(lvlm_guard.__file__).parent
    digest = sha256()
    # the rooms are links in a checkout, which rglob does not follow
    for path in sorted({*root.rglob("*.py"), *(root / "evals").rglob("*.py")}):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _weights_digest(folders: list[Path]) -> str:
    digest = sha256()
    for path in sorted(path for folder in folders for path in folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker, so that sums come out alike
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _environment(workers: int) -> dict[str, str]:
    names = ("torch", "transformers", "numpy", "pillow")
    return {
        "python": platform.python_version(),
        **{name: installed(name) for name in names},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "workers": f"{workers} of one thread",
    }
