"""The demo: ask, score, report on the embedded world, told as a story on a page of its own.

from lvlm_guard.evals.studies import demo
shown = demo.run("demo-out")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lvlm_guard.evals.errors import VoidRunError
from lvlm_guard.evals.infer.ask import MANY, ask
from lvlm_guard.evals.infer.prepare import prepare_run
from lvlm_guard.evals.report.saved import read_run
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.stats.score import score
from lvlm_guard.evals.studies.demo.examples import choose
from lvlm_guard.evals.studies.demo.page import write

COMMAND = "demo"
SETTINGS = Settings(batch=MANY)
QUICK = replace(SETTINGS, limit=24, captions=24, seeds=1)


@dataclass(frozen=True)
class Demo:
    """What a demo found."""

    folder: Path  # of the run
    results: Mapping[str, Any]  # what `results.json` holds
    page: Path  # `demo.html`


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
        out: folder for `demo.html`, `answers.parquet` and `results.json`.
        settings: of the run; `QUICK`: a few pictures, one seed, intervals as wide as that deserves.
        echo, bar, workers, started_over: as in `lvlm_guard.evals.infer.ask.ask`.

    Raises:
        DataError: the folder holds a run that is no demo.
        RunError: a worker process ended early.
        VoidRunError: answers are empty, failed or cut.
        KeyboardInterrupt: after a line that says where the answers are.
    """
    folder = ask(
        settings, out, echo=echo, bar=bar, workers=workers, started_over=started_over, command=COMMAND, replaces=True
    )
    results = score(folder)
    if results["void"]:
        raise VoidRunError(f"The run in {folder} is void, so it has no page: {' '.join(results['void'])}")
    saved, prepared = read_run(folder), prepare_run(settings)
    return Demo(folder, results, write(saved, choose(prepared, saved), prepared))
