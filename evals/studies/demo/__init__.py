"""The demo: ask, score, report on the embedded world, told as a story on a page of its own.

from lvlm_guard.evals.studies import demo
shown = demo.run("demo-out")
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lvlm_guard.evals.errors import VoidRunError
from lvlm_guard.evals.infer.ask import MANY, ask
from lvlm_guard.evals.infer.prepare import prepare_run
from lvlm_guard.evals.report.saved import read_run
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.stats.score import score
from lvlm_guard.evals.studies.demo.page import write

SETTINGS = Settings(batch=MANY)
QUICK = replace(SETTINGS, limit=24, captions=24, seeds=1)


@dataclass(frozen=True)
class Demo:
    """What a demo found: the folder of the run, what its `results.json` holds, and `demo.html`."""

    folder: Path
    results: dict[str, Any]
    page: Path


def run(out: str | Path = "demo-out", settings: Settings = SETTINGS, **how: Any) -> Demo:
    """Ask every decoder on the embedded world, score the answers, and write the page.

    An interrupted run goes on where it stopped when the same command is given again, with the same final
    numbers; a demo of other settings or other code in the folder is replaced.

    Args:
        out: folder for `demo.html`, `answers.parquet` and `results.json`.
        settings: of the run; `QUICK`: a few pictures, one seed, intervals as wide as that deserves.
        how: "echo", "bar", "workers", "started_over" of `lvlm_guard.evals.infer.ask.ask`, whose errors these are too.

    Raises:
        DataError: the folder holds a run that is no demo.
        VoidRunError: answers are empty, failed or cut.
    """
    folder = ask(settings, out, command="demo", replaces=True, **how)
    results = score(folder)
    if results["void"]:
        raise VoidRunError(f"The run in {folder} is void, so it has no page: {' '.join(results['void'])}")
    return Demo(folder, results, write(read_run(folder), prepare_run(settings)))
