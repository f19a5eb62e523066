"""The demo: the default run of `lvlm-guard eval run`, told as a story on a page of its own.

from lvlm_guard.evals.studies import demo
shown = demo.run("demo-out")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from lvlm_guard.evals.errors import VoidRunError
from lvlm_guard.evals.infer.prepare import Prepared
from lvlm_guard.evals.infer.run import MANY
from lvlm_guard.evals.infer.run import run as run_evaluation
from lvlm_guard.evals.report.saved import Saved
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.studies.demo.examples import choose
from lvlm_guard.evals.studies.demo.page import PAGE, write

SETTINGS = Settings(batch=MANY)
QUICK = replace(SETTINGS, limit=24, captions=24, seeds=1)


@dataclass(frozen=True)
class Demo:
    """What a demo found.

    Args:
        saved: the run, its folder and its rows.
        page: `demo.html`.
    """

    saved: Saved
    page: Path


def run(
    out: str | Path = "demo-out",
    settings: Settings = SETTINGS,
    *,
    echo: Callable[[str], object] = print,
    bar: bool | None = None,
    workers: int | None = None,
    started_over: bool = False,
) -> Demo:
    """Ask every decoder on the embedded world, score the answers, and write the page.

    An interrupted run goes on where it stopped when the same command is given again, with the same final
    numbers; a demo of other settings or other code in the folder is replaced.

    Args:
        out: folder for `demo.html`, `run.json`, `samples.jsonl` and the answers.
        settings: of the run; `QUICK`: a few pictures, one seed, intervals as wide as that deserves.
        echo, bar, workers, started_over: as in `lvlm_guard.evals.infer.run.run`.

    Raises:
        DataError: the folder holds a run that is no demo.
        RunError: a worker process ended early.
        VoidRunError: answers are empty, failed or cut.
        KeyboardInterrupt: after a line that says where the answers are.
    """
    saved = run_evaluation(
        settings,
        out,
        echo=echo,
        bar=bar,
        workers=workers,
        page=_page,
        started_over=started_over,
        command="demo",
        replaces=True,
    )
    return Demo(saved, saved.folder / PAGE)


def _page(prepared: Prepared, saved: Saved) -> Path:
    if saved.run["status"] == "void":
        raise VoidRunError(f"The run in {saved.folder} is void, so it has no page: {' '.join(saved.run['void'])}")
    return write(saved, choose(prepared, saved), prepared)
