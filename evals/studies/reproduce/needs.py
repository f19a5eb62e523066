"""What the grid needs from elsewhere (weights, pictures, annotations, question files), told before it is run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lvlm_guard
from lvlm_guard.errors import GuardError
from lvlm_guard.evals.report.saved import plain
from lvlm_guard.evals.spec.settings import EMBEDDED, Settings
from lvlm_guard.evals.studies.reproduce.plan import ASSUMED, HUB, Cell, config_of, plan
from lvlm_guard.evals.tasks import tasks_of
from lvlm_guard.evals.tasks.coco.chair import AGLA_PICTURES
from lvlm_guard.evals.tasks.pope.files import IMANGE, QUESTIONS

COMMAND = "eval reproduce agla"
UNPUBLISHED = "Nothing published stands beside these figures: the embedded model and its world are this package's own."


@dataclass(frozen=True)
class Download:
    """Something the grid needs."""

    what: str  # in a few words
    place: str  # hub id or address
    gb: float  # its size in GB (10^9 bytes), about
    by_hand: bool = True  # whether the user has to get it; otherwise it is fetched when it is needed
    there: bool | None = None  # whether it is here already; None: that depends on where the user keeps it


_COCO = "http://images.cocodataset.org"
MATCHER = Download("weights, 0.45 billion parameters in float32; the matcher", "Salesforce/blip-itm-large-coco", 1.8)
WEIGHTS = {
    HUB["llava-1.5-7b"]: Download("weights, 7.1 billion parameters in float16", HUB["llava-1.5-7b"], 14.1),
    HUB["instructblip-vicuna-7b"]: Download(
        "weights, 7.9 billion parameters in float32", HUB["instructblip-vicuna-7b"], 31.7
    ),
}
COCO = Download("pictures of COCO val2014: COCO, A-OKVQA and CHAIR", f"{_COCO}/zips/val2014.zip", 6.2)
GQA = Download("pictures of GQA", "https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip", 20.3)
ANNOTATIONS = Download(
    "COCO's instances and captions: CHAIR's truth", f"{_COCO}/annotations/annotations_trainval2014.zip", 0.24
)


def downloads(cells: Sequence[Cell]) -> list[Download]:
    """Return what the cells need, each once; nothing for the embedded model."""
    real = [cell for cell in cells if cell.model != EMBEDDED]
    places = [cell.settings.model for cell in real]
    weights = [WEIGHTS[place] for place in places if place in WEIGHTS]
    # a folder's model may name a matcher of its own
    weights += [MATCHER for place in places if not (config_of(place).get("lvlm_guard") or {}).get("matcher")]
    found = [replace(one, there=cached(one.place)) for one in dict.fromkeys(weights)]
    found += [GQA if cell.data == "gqa" else COCO for cell in real]
    found += [ANNOTATIONS for cell in real if cell.task == "chair"]
    asking = (cell for cell in real if not cell.settings.questions)
    found += [Download("question file", url, 0.0003, by_hand=False) for cell in asking for url in _files(cell)]
    return list(dict.fromkeys(found))


def _files(cell: Cell) -> Iterator[str]:
    if cell.task == "chair":
        yield AGLA_PICTURES.url
    else:
        files = QUESTIONS | {("coco", "adversarial"): IMANGE}
        yield from (file.url for (data, _), file in files.items() if data == cell.data)


def cached(hub: str) -> bool:
    """Return whether the hub's cache on this machine holds the weights, all their parts."""
    from huggingface_hub import try_to_load_from_cache

    config: Any = try_to_load_from_cache(hub, "config.json")
    if not isinstance(config, str):
        return False
    folder = Path(config).parent
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return all((folder / part).exists() for part in parts)
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def missing(cells: Sequence[Cell]) -> list[str]:
    """Say what the cells need and this machine lacks, all of it: weights, question files, pictures, annotations.

    Question files that are not at hand are fetched, weights are not: no run begins with 30 GB unasked.
    """
    found = {
        f"The weights of {one.place} are not here ({one.gb:g} GB): get them with `hf download {one.place}`.": None
        for one in downloads(cells)
        if one.there is False
    }
    for cell in {(cell.settings.tasks[0], cell.model): cell for cell in reversed(cells)}.values():
        try:
            tasks_of(cell.settings)
        except GuardError as error:
            found[str(error)] = None
    return list(found)


@dataclass(frozen=True)
class DryRun:
    """What a reproduction would take: its runs, what they need, each once, and the estimated hours."""

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
        found: dict[str, Any] = plain(told | {"gb": gb, "cells": cells, "downloads": list(map(asdict, self.downloads))})
        return found


def dry_run(model: str | None = None, only: Sequence[str] = (), base: Settings | None = None) -> DryRun:
    """Return what `reproduce` would run and need; arguments and errors as `plan`'s. Loads and fetches nothing."""
    cells = plan(model, only, base)
    return DryRun(cells, downloads(cells))


def sentences(found: DryRun) -> list[str]:
    """Return what a dry run tells, in sentences."""
    answers = sum(cell.answers for cell in found.cells)
    took = f"{found.hours:.0f} hours" if found.hours >= 2 else f"{60 * found.hours:.0f} minutes"
    told = [f"{len(found.cells)} runs, {answers:,} answers, about {took}."]
    if all(cell.model == EMBEDDED for cell in found.cells):
        return [*told, "No downloads.", "Hours are estimates for two cores.", UNPUBLISHED]
    by_hand = [one for one in found.downloads if one.by_hand and not one.there]
    told.append(f"To get: {len(by_hand)} downloads, {sum(one.gb for one in by_hand):.1f} GB. Sizes are rounded.")
    told += [f"- {one.gb:.1f} GB: {one.what}: {one.place}" for one in by_hand]
    told += [f"- here already: {one.what}: {one.place}" for one in found.downloads if one.there]
    if files := sum(not one.by_hand for one in found.downloads):
        told.append(f"{files} question files are fetched when they are needed, less than a megabyte each.")
    return [*told, ASSUMED]
