"""AGLA's paper again (arXiv:2406.12718): its grid, measured beside published.

    print(*sentences(dry_run()), sep="\\n")                   # what to get, how large it is, how long it takes
    found = reproduce("runs/agla", base=Settings(images="pictures", annotations="annotations"))
    found = reproduce("runs/world", model="embedded")        # the same grid without downloads

Each cell is a run of its own below `out`: it goes on where it stopped, and a finished one is not asked again. What
differs from the authors' release is told beside the figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lvlm_guard
from lvlm_guard.cli.console import finite
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.infer.ask import ask
from lvlm_guard.evals.infer.record import code_digest
from lvlm_guard.evals.report.page import write_report
from lvlm_guard.evals.report.saved import Run, read_run
from lvlm_guard.evals.spec.jsonl import write_lines
from lvlm_guard.evals.spec.settings import EMBEDDED, Settings
from lvlm_guard.evals.stats.score import score
from lvlm_guard.evals.stats.validity import Allowed
from lvlm_guard.evals.studies.reproduce.figures import PUBLISHED, figures
from lvlm_guard.evals.studies.reproduce.grid import COMMAND, TABLE, dry_run, missing, plan, sentences

FILE = "reproduction.json"


def reproduce(
    out: str | Path,
    model: str | None = None,
    only: Sequence[str] = (),
    base: Settings | None = None,
    *,
    echo: Callable[[str], object] = print,
    workers: int | None = None,
    allowed: Allowed | None = None,
    report: bool = True,
) -> dict[str, Any]:
    """Run the grid, and set it beside what is published.

    `model`, `only` and `base` are as of `plan`, `workers` of `ask`, `allowed` of `score`; `report`: whether each run
    gets a page. Returns what `reproduction.json` in `out` holds: "cells" (those that were run), "rows", "void"
    (sentences: cells whose answers can't be scored) and "notes". Rows have "data", "kind", "mode" and, where there is
    one, "published" (a share), "source" and "inside" (whether the measured 95 % interval holds it). Raises `DataError`
    (something that the grid needs is missing; the message names all of it) and what `plan` and `ask` raise.
    """
    out, cells = Path(out), plan(model, only, base)
    there = [_finished(out / cell.name, cell.settings) for cell in cells]
    if lacking := missing([cell for cell, saved in zip(cells, there, strict=True) if saved is None]):
        raise DataError("The grid can't be run yet:\n" + "\n".join(f"- {one}" for one in lacking))
    runs, void, notes = [], [], [TABLE["unpublished"]]
    if any(cell.model != EMBEDDED for cell in cells):
        limited = any(cell.settings.limit or cell.settings.captions for cell in cells)
        notes = ["A limit was set: these are not the published questions, all of them."] if limited else []
        notes += [*TABLE["differences"], f"Not set beside anything: {PUBLISHED['missing']}"]
    for number, (cell, saved) in enumerate(zip(cells, there, strict=True), 1):
        folder = out / cell.name
        if saved is not None:
            echo(f"{number} of {len(cells)}: {cell.name} is finished.")
            if saved.asked["code"] not in (code_digest(adapters=False), code_digest()):
                notes.append(f"{cell.name} was run by other code ({saved.asked['code']}) than this.")
        else:
            echo(f"{number} of {len(cells)}: {cell.name}, {cell.answers:,} answers.")
            ask(cell.settings, folder, echo=echo, workers=workers)
            score(folder, allowed=allowed)
            saved = read_run(folder)
            if report:
                write_report(folder)
        scored = saved.results.data
        void += [f"{cell.name}: {sentence}" for sentence in scored["void"]]
        if not scored["void"]:
            runs.append((cell, saved))
            # what is amiss with its questions or pictures, and the first of its other warnings
            of_data = [told for task in saved.asked["tasks"] for told in task["about"].get("warnings", ())]
            notes += of_data
            if others := [told for told in scored["warnings"] if told not in of_data]:
                more = f" (and {len(others) - 1} more, see its report)" if others[1:] else ""
                notes.append(f"{cell.name}: {others[0]}{more}")
    told = {"command": COMMAND, "version": lvlm_guard.__version__, "rows": figures(runs)}
    told |= {"status": "void" if void else "complete", "void": void, "notes": list(dict.fromkeys(notes))}
    found: dict[str, Any] = finite(told | {"cells": [cell.name for cell in cells]})
    write_lines(out / FILE, [json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)])
    return found


def _finished(folder: Path, settings: Settings) -> Run | None:
    """Return a cell's run where it is complete and of the same settings."""
    try:
        saved = read_run(folder)
    except DataError:  # not there, or damaged: asked again, which refuses what it can't go on with
        return None
    same = saved.asked["settings"] == json.loads(json.dumps(settings.to_dict()))
    return saved if same and saved.status == "complete" else None


__all__ = ["dry_run", "reproduce", "sentences"]
