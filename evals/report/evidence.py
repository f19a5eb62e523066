"""The pictures of a run's report: where decoders disagree, each with the matcher's map. Optional: it needs the model.

    collect_for("runs/first")                     # loads the model of the run
    collect(answerer, tasks, read_run(folder))    # with one that is at hand

Both write small pictures and `index.json` into `evidence/`, from which the report is made without any model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lvlm_guard.errors import GuardError
from lvlm_guard.evals.errors import disk_trouble
from lvlm_guard.evals.report.disagreement import disagreements
from lvlm_guard.evals.report.saved import Run, finished
from lvlm_guard.evals.spec.jsonl import write_lines
from lvlm_guard.report.pictures import Picture, fitted, overlay, panel

if TYPE_CHECKING:
    from lvlm_guard.engine.trace import SecondView
    from lvlm_guard.evals.decoders.decoder import Decoder
    from lvlm_guard.evals.infer.generate import Asker
    from lvlm_guard.evals.spec.items import EvalTask, Item
    from lvlm_guard.matching import Matcher


EVIDENCE, INDEX = "evidence", "index.json"
PICTURES = ("picture", "map", "local")
LARGEST = 320  # longest side of a written picture


def collect_for(folder: str | Path) -> Path:
    """Load the model of a finished run, and collect the pictures of its report; returns the index.

    Raises `DataError` where the folder holds no finished run, `VoidRunError`, and `WeightsError` without the model.
    """
    from lvlm_guard.evals.infer.prepare import prepare_run
    from lvlm_guard.evals.spec.settings import Settings

    run = finished(folder)
    prepared = prepare_run(Settings.of(run.asked["settings"]))
    return collect(prepared.answerer, prepared.tasks, run)


def collect(answerer: object, tasks: Sequence[EvalTask], run: Run) -> Path:
    """Write the pictures of the items on which decoders disagree, and what the matcher made of them; return the index.

    A model in this process is asked for one token, by the first method that cuts a local view, so that map and
    view are those of its answer. Without such a method the matcher is asked directly; with neither, or with a
    server, pictures stand alone and the index says so. An item whose picture can't be used keeps the reason in
    the picture's place. Raises `RunError` where a file can't be written.
    """
    maps, folder = maps_of(answerer), run.folder / EVIDENCE
    items = {(task.name, item.key): item for task in tasks for item in task.items}
    with disk_trouble(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        entries: list[dict[str, Any]] = []
        for one in (one for found in disagreements(run).values() for one in found.shown):
            found = _looked(maps, items[one.task, one.key])
            for place, view in enumerate(found["views"]):
                for what in (what for what in PICTURES if view.get(what) is not None):
                    name = f"{len(entries)}-{place}-{what}.jpg"
                    fitted(view[what], largest=LARGEST).save(folder / name, format="jpeg", quality=88, optimize=True)
                    view[what] = name
            entries.append({"task": one.task, "key": one.key} | found)
        index = {"maps": maps.about, "items": entries}
        return write_lines(folder / INDEX, [json.dumps(index, indent=1, ensure_ascii=False)])


def _looked(maps: Maps, item: Item) -> dict[str, Any]:
    try:
        return {"views": maps.of(item)}
    except GuardError as error:
        problem = f"No relevance map: {error}"
    try:
        return {"views": [{"picture": picture} for picture in item.pictures()], "problem": problem}
    except GuardError as error:
        return {"views": [], "problem": str(error)}


class Evidence(NamedTuple):
    """What was collected of a run: what the maps are, and the entry of each task and item."""

    folder: Path
    about: str = ""
    entries: Mapping[tuple[str, str], Mapping[str, Any]] = {}

    def panel(self, task: str, key: str) -> str:
        """Return an item's pictures as markup, "" without any; a file that is gone is left out."""
        found = []
        for view in self.entries.get((task, key), {}).get("views", ()):
            kept = f", {view['kept']:.0%} kept" if view.get("kept") is not None else ""
            for what, title in zip(PICTURES, ("Picture", "Relevance", f"Local view{kept}"), strict=True):
                path = self.folder / Path(view.get(what) or "none").name
                if path.is_file():
                    found.append(Picture(path, title, view.get("note", "") if what == "map" else ""))
        return panel(found) if found else ""


def collected(folder: Path) -> Evidence:
    """Return what was collected of the run in a folder, nothing where that can't be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        index = json.loads((folder / EVIDENCE / INDEX).read_text(encoding="utf-8"))
        entries = {(entry["task"], entry["key"]): entry for entry in index["items"]}
        return Evidence(folder / EVIDENCE, str(index["maps"]), entries)
    return Evidence(folder / EVIDENCE)


@dataclass(frozen=True)
class Maps:
    """The pictures of items, with maps where a matcher in this process makes them."""

    about: str  # what is shown, or why there are pictures alone, in a sentence
    asker: Asker | None = None
    matcher: Matcher | None = None  # who makes the map; None: nobody
    decoder: Decoder | None = None  # whose local view is shown; None: no method of the run cuts one

    def of(self, item: Item) -> list[dict[str, Any]]:
        """Return the item's pictures, each with its map; raises `GuardError` where a picture can't be used."""
        import torch

        from lvlm_guard.engine.trace import SecondView
        from lvlm_guard.evals.decoders.decoder import PLAIN
        from lvlm_guard.evals.infer.generate import prepare

        if self.asker is None or self.matcher is None:
            return [{"picture": picture} for picture in item.pictures()]
        # sums depend on what is computed together: what the run remembers could differ in the last bit
        self.matcher.forget()
        inputs = prepare(self.asker.processor, [item])
        views = inputs["guard_views"].views()
        if self.decoder is None:
            found = self.matcher([view.image for view in views], [view.text for view in views])
            return [_shown(view, SecondView(match=match)) for view, match in zip(views, found, strict=True)]
        # "batched" makes the local view even where the first token would not need it
        options = {**PLAIN, "guard_execution": "batched", "max_new_tokens": 1, "return_dict_in_generate": True}
        with torch.inference_mode():
            inputs = inputs.to(self.asker.model.device, self.asker.model.dtype)
            out = self.asker.model.generate(**inputs, **options, guard=self.decoder.guard(0))
        return [_shown(view, out.guard.view(view.index)) for view in views]


def maps_of(answerer: object) -> Maps:
    """Return who makes the maps of an answerer: an `Asker`; any other answered elsewhere."""
    from lvlm_guard.evals.infer.generate import Asker

    if not isinstance(answerer, Asker):
        return Maps("The answers came from a server, which gives no relevance maps: pictures stand alone.")
    guarded = [(d, d.guard(0)) for d in answerer.decoders.values() if d.runs and d.role == "method"]
    cutting = ((d, method.matcher) for d, method in guarded if hasattr(method, "matcher") and method.branches())
    decoder, own = next(cutting, (None, None))
    matcher = own or answerer.matcher or next(iter(answerer.matchers.values()), None)
    if matcher is None:
        return Maps("No method of this run asks a matcher, so there are no relevance maps.")
    about = "Relevance: which parts of the picture the matcher finds relevant to the question; "
    if decoder is None:
        return Maps(f"{about}no method of this run cuts a view from it.", answerer, matcher)
    about += f"bright is relevant. The pale line bounds what {decoder.name} keeps in its local view, black elsewhere."
    return Maps(about, answerer, matcher, decoder)


def _shown(view: Any, made: SecondView) -> dict[str, Any]:
    shown: dict[str, Any] = {"picture": view.image, "text": view.text}
    match, local = made.match, made.local
    if match is not None:
        shown["map"] = overlay(view.image, match.relevance, keep=match.keep if local is not None else None)
        if local is not None:  # "squashed" views are squares: in the picture's shape, they can be compared with it
            shown["local"] = local if local.size == view.image.size else local.resize(view.image.size)
            shown["kept"] = round(float(match.keep.float().mean()), 4)
        if match.note:
            shown["note"] = match.note
    return shown
