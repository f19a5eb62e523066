"""AGLA's paper again (arXiv:2406.12718): its grid, measured beside published.

    print(*sentences(dry_run()), sep="\\n")                   # what to get, how large it is, how long it takes
    found = reproduce("runs/agla", images="pictures", annotations="annotations")
    found = reproduce("runs/world", model="embedded")        # the same grid without downloads

Each cell is a run of its own below `out`: it goes on where it stopped, and a finished one is not asked again. What
differs from the authors' release is told beside the figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lvlm_guard
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.infer.ask import ask
from lvlm_guard.evals.infer.identity import code_digest
from lvlm_guard.evals.report.page import write_report
from lvlm_guard.evals.report.saved import ASKED, Run, plain, read_run, write_whole
from lvlm_guard.evals.spec.settings import EMBEDDED, Settings
from lvlm_guard.evals.stats.results import Row
from lvlm_guard.evals.stats.score import score
from lvlm_guard.evals.stats.validity import Allowed
from lvlm_guard.evals.studies.reproduce.figures import Finished, figures
from lvlm_guard.evals.studies.reproduce.needs import Download, downloads
from lvlm_guard.evals.studies.reproduce.plan import ASSUMED, ASSUMED_EMBEDDED, Cell, missing, plan
from lvlm_guard.evals.studies.reproduce.published import published

COMMAND, FILE = "eval reproduce agla", "reproduction.json"

DIFFERENCES = (
    "Answers are read as AGLA's script reads them (it looks for the letters of the right answer); the sound reading "
    "is in each run's own report.",
    "Seeds are 0 to 2 where the release has 1 to 3, and a question draws alike in any order; a question that several "
    "kinds of POPE share is asked once and counts in each.",
    "Prompts are in the model's own template: for LLaVA-1.5 it says user where the release says human.",
    "For InstructBLIP the release also cuts to the 50 likeliest tokens; here nothing is cut beside AGLA's own "
    "constraint.",
)
UNPUBLISHED = "Nothing published stands beside these figures: the embedded model and its world are this package's own."


@dataclass(frozen=True)
class DryRun:
    """What a reproduction would take.

    Args:
        cells: its runs.
        downloads: what they need, each once.
    """

    cells: list[Cell]
    downloads: list[Download]

    @property
    def hours(self) -> float:
        """Estimated, see `plan.ASSUMED`."""
        return sum(cell.hours for cell in self.cells)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON data; "gb" is of what is not known to be here."""
        cells = [vars(c) | {"name": c.name, "kinds": c.kinds, "settings": c.settings.to_dict()} for c in self.cells]
        told = {"command": COMMAND, "version": lvlm_guard.__version__, "dry_run": True, "hours": self.hours}
        gb = sum(one.gb for one in self.downloads if not one.there)
        found: dict[str, Any] = plain(told | {"gb": gb, "cells": cells, "downloads": list(map(vars, self.downloads))})
        return found


def dry_run(model: str | None = None, only: Sequence[str] = (), base: Settings | None = None) -> DryRun:
    """Return what `reproduce` would run and need; arguments and errors as `plan`'s. Loads and fetches nothing."""
    cells = plan(model, only, base)
    return DryRun(cells, downloads(cells))


def sentences(found: DryRun) -> list[str]:
    """Return what a dry run tells, in sentences."""
    embedded = all(cell.model == EMBEDDED for cell in found.cells)
    answers = sum(cell.answers for cell in found.cells)
    took = f"{found.hours:.0f} hours" if found.hours >= 2 else f"{60 * found.hours:.0f} minutes"
    told = [f"{len(found.cells)} runs, {answers:,} answers, about {took}."]
    if embedded:
        return [*told, "No downloads.", ASSUMED_EMBEDDED, UNPUBLISHED]
    by_hand = [one for one in found.downloads if one.by_hand and not one.there]
    told.append(f"To get: {len(by_hand)} downloads, {sum(one.gb for one in by_hand):.1f} GB. Sizes are rounded.")
    told += [f"- {one.gb:.1f} GB: {one.what}: {one.place}" for one in by_hand]
    told += [f"- here already: {one.what}: {one.place}" for one in found.downloads if one.there]
    files = sum(not one.by_hand for one in found.downloads)
    if files:
        told.append(f"{files} question files are fetched when they are needed, less than a megabyte each.")
    return [*told, ASSUMED]


@dataclass(frozen=True)
class Reproduced:
    """Measured beside published.

    Args:
        folder: of all runs.
        cells: those that were run.
        rows: long rows with "data", "kind", "mode" and, where there is one, "published" (a share), "source" and
            "inside" (whether the measured 95 % interval holds the published figure).
        void: sentences: cells whose answers can't be scored, and which are in no row.
        notes: what to know when comparing.
    """

    folder: Path
    cells: list[Cell]
    rows: list[Row]
    void: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON data."""
        told: dict[str, Any] = {"command": COMMAND, "version": lvlm_guard.__version__, "rows": self.rows}
        told |= {"status": "void" if self.void else "complete"}
        told |= {"void": self.void, "notes": self.notes, "cells": [cell.name for cell in self.cells]}
        found: dict[str, Any] = plain(told)
        return found


def reproduce(
    out: str | Path,
    model: str | None = None,
    only: Sequence[str] = (),
    base: Settings | None = None,
    *,
    images: str = "",
    annotations: str = "",
    echo: Callable[[str], object] = print,
    workers: int | None = None,
    allowed: Allowed | None = None,
    report: bool = True,
) -> Reproduced:
    """Run the grid, and set it beside what is published.

    Args:
        out: folder of the runs; `reproduction.json` is written into it.
        model, only, base: see `plan`.
        images, annotations: folders, instead of in `base`.
        echo: told what happens, a line at a time.
        workers: of each run, see `ask`.
        allowed: see `score`.
        report: whether each run gets a page.

    Raises:
        DataError: something that the grid needs is missing (the message names all of it), or see `plan` and `ask`.
        RunError: see `ask`.
    """
    base = base or Settings()
    base = replace(base, images=images or base.images, annotations=annotations or base.annotations)
    cells = plan(model, only, base)
    lacking = missing([cell for cell in cells if _finished(Path(out) / cell.name, cell.settings) is None])
    if lacking:
        raise DataError("The grid can't be run yet:\n" + "\n".join(f"- {one}" for one in lacking))
    runs: list[Finished] = []
    void, notes = [], []
    for number, cell in enumerate(cells, 1):
        folder = Path(out) / cell.name
        saved = _finished(folder, cell.settings)
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
        scored = saved.scored or {}
        if scored["void"]:
            void += [f"{cell.name}: {sentence}" for sentence in scored["void"]]
            continue
        runs.append(Finished(cell.model, cell.task, cell.data, cell.mode, saved))
        notes += _warned(cell, saved)
    found = Reproduced(Path(out), cells, figures(runs), void, list(dict.fromkeys([*_told(cells), *notes])))
    write_whole(Path(out), FILE, json.dumps(found.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return found


def _finished(folder: Path, settings: Settings) -> Run | None:
    """Return a cell's run where it is complete and of the same settings."""
    if not (folder / ASKED).exists():
        return None
    try:
        saved = read_run(folder)
    except DataError:  # damaged: asked again, which refuses what it can't go on with
        return None
    same = saved.asked["settings"] == json.loads(json.dumps(settings.to_dict()))
    return saved if same and saved.status == "complete" else None


def _warned(cell: Cell, saved: Run) -> list[str]:
    """Return what is amiss with a cell's questions or pictures, and the first of its other warnings."""
    of_data = [told for task in saved.asked["tasks"] for told in task["about"].get("warnings", ())]
    others = [told for told in (saved.scored or {})["warnings"] if told not in of_data]
    more = f" (and {len(others) - 1} more, see its report)" if len(others) > 1 else ""
    return [*of_data, *(f"{cell.name}: {told}{more}" for told in others[:1])]


def _told(cells: Sequence[Cell]) -> list[str]:
    if all(cell.model == EMBEDDED for cell in cells):
        return [UNPUBLISHED]
    told = [*DIFFERENCES, f"Not set beside anything: {published()['missing']}"]
    if any(cell.settings.limit or cell.settings.captions for cell in cells):
        told.insert(0, "A limit was set: these are not the published questions, all of them.")
    return told
