"""The pictures of a run's report: where decoders disagree, each with the matcher's map. Optional: it needs the model.

    collect_for("runs/first")                     # loads the model of the run
    collect(answerer, tasks, read_run(folder))    # with one that is at hand

Both write small pictures and `index.json` into `evidence/`, from which the report is made without any model. Nothing is
made again while the same items of the same run are shown.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lvlm_guard.errors import GuardError, UnsupportedCallError
from lvlm_guard.evals.errors import disk_trouble
from lvlm_guard.evals.report.disagreement import disagreements
from lvlm_guard.evals.report.saved import Run, finished, write_whole
from lvlm_guard.report.pictures import Picture, fitted, overlay, panel

if TYPE_CHECKING:
    from lvlm_guard.engine.trace import SecondView
    from lvlm_guard.evals.decoders.decoder import Decoder
    from lvlm_guard.evals.infer.generate import Asker
    from lvlm_guard.evals.spec.items import EvalTask, Item
    from lvlm_guard.matching import Matcher


EVIDENCE, INDEX = "evidence", "index.json"
PICTURES = ("picture", "map", "local", "sought_map")
LARGEST = 320  # longest side of a written picture
FORMAT = 2  # of the index; another number makes everything anew


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
    shown = [one for found in disagreements(run).values() for one in found.shown]
    told = [[run.asked.get("identity"), maps.version, FORMAT], [[one.task, one.key, one.objects] for one in shown]]
    made_from = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    had = collected(run.folder)
    if had.made_from == made_from and all(path.is_file() for path in had.files()):
        return folder / INDEX
    with disk_trouble(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        entries = []
        for number, one in enumerate(shown):
            found = _looked(maps, items[one.task, one.key], one.objects)
            for place, view in enumerate(found["views"]):
                for what in (what for what in PICTURES if view.get(what) is not None):
                    name = f"{number}-{place}-{what}.jpg"
                    fitted(view[what], largest=LARGEST).save(folder / name, format="jpeg", quality=88, optimize=True)
                    view[what] = name
            entries.append({"task": one.task, "key": one.key} | found)
        index = {"made_from": made_from, "maps": maps.about, "items": entries}
        return write_whole(folder, INDEX, json.dumps(index, indent=1, ensure_ascii=False) + "\n")


def _looked(maps: Maps, item: Item, objects: Sequence[str]) -> dict[str, Any]:
    try:
        return maps.of(item, objects)
    except GuardError as error:
        problem = f"No relevance map: {error}"
    try:
        return {"views": [{"picture": picture} for picture in item.pictures()], "problem": problem}
    except GuardError as error:
        return {"views": [], "problem": str(error)}


class Evidence(NamedTuple):
    """What was collected of a run: what from, what the maps are, and the entry of each task and item."""

    folder: Path
    made_from: str = ""
    about: str = ""
    entries: Mapping[tuple[str, str], Mapping[str, Any]] = {}

    def files(self) -> Iterator[Path]:
        """Yield the files of all pictures."""
        views = (view for entry in self.entries.values() for view in entry.get("views", ()))
        return (self.folder / Path(view[what]).name for view in views for what in PICTURES if view.get(what))

    def panel(self, task: str, key: str) -> str:
        """Return an item's pictures as markup, "" without any; a file that is gone is left out."""
        found = []
        for view in self.entries.get((task, key), {}).get("views", ()):
            kept = f", {view['kept']:.0%} kept" if view.get("kept") is not None else ""
            titles = ("Picture", "Relevance", f"Local view{kept}", f"Map of “{view.get('sought', '')}”")
            for what, title in zip(PICTURES, titles, strict=True):
                path = self.folder / Path(view.get(what) or "none").name
                if path.is_file():
                    found.append(Picture(path, title, view.get("note", "") if what == "map" else ""))
        return panel(found) if found else ""


def collected(folder: Path) -> Evidence:
    """Return what was collected of the run in a folder, nothing where that can't be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        index = json.loads((folder / EVIDENCE / INDEX).read_text(encoding="utf-8"))
        entries = {(entry["task"], entry["key"]): entry for entry in index["items"]}
        return Evidence(folder / EVIDENCE, index.get("made_from", ""), str(index["maps"]), entries)
    return Evidence(folder / EVIDENCE)


@dataclass(frozen=True)
class Maps:
    """The pictures of items, with maps where a matcher in this process makes them."""

    about: str  # what is shown, or why there are pictures alone, in a sentence
    asker: Asker | None = None
    matcher: Matcher | None = None  # who makes the map; None: nobody
    decoder: Decoder | None = None  # whose local view is shown; None: no method of the run cuts one

    @property
    def version(self) -> str:
        """What decides the maps beside the item."""
        if self.matcher is None:
            return "pictures alone"
        knobs = sorted(self.decoder.knobs.items(), key=str) if self.decoder else []
        return f"{self.matcher.version} {self.decoder.name if self.decoder else ''} {knobs}"

    def of(self, item: Item, objects: Sequence[str]) -> dict[str, Any]:
        """Return the item's pictures, each with its map, and what the matcher says of the claims: that each of the
        `objects` is there, or else what a yes/no question asks. Raises `GuardError` where a picture can't be used.
        """
        from lvlm_guard.matching.questions import yes_no_claim
        from lvlm_guard.methods.vote import Vote, claim_about

        if self.asker is None or self.matcher is None:
            return {"views": [{"picture": picture} for picture in item.pictures()]}
        # sums depend on what is computed together: what the run remembers could differ in the last bit
        self.matcher.forget()
        found: dict[str, Any] = {
            "views": [_shown(view, made) for view, made in self._looked(item, self.asker, self.matcher)]
        }
        question = item.question or item.prompt
        claims = {claim_about(name, Vote.template): name for name in objects}
        if not objects and yes_no_claim(question):
            claims = {question: ""}
        if not found["views"] or not claims:
            return found
        image = item.pictures()[0]
        try:
            shares = self.matcher.support(image, list(claims)).tolist()
        except UnsupportedCallError:  # a matcher of maps alone
            return found
        if objects:
            (match,) = self.matcher([image], [next(iter(claims))])
            found["views"][0] |= {"sought": objects[0], "sought_map": overlay(image, match.relevance)}
        found["support"] = [
            {"claim": claim, "object": name, "probability": round(float(share), 4)}
            for (claim, name), share in zip(claims.items(), shares, strict=True)
        ]
        return found

    def _looked(self, item: Item, asker: Asker, matcher: Matcher) -> list[tuple[Any, SecondView]]:
        """Return the item's pictures, each with its match and what the method makes of it."""
        import torch

        from lvlm_guard.engine.trace import SecondView
        from lvlm_guard.evals.decoders.decoder import PLAIN
        from lvlm_guard.evals.infer.generate import prepare

        inputs = prepare(asker.processor, [item])
        views = inputs["guard_views"].views()
        if self.decoder is None or not self.decoder.runs:
            found = matcher([view.image for view in views], [view.text for view in views])
            return [(view, SecondView(match=match)) for view, match in zip(views, found, strict=True)]
        # "batched" makes the local view even where the first token would not need it
        options = {**PLAIN, "guard_execution": "batched", "max_new_tokens": 1, "return_dict_in_generate": True}
        with torch.inference_mode():
            inputs = inputs.to(asker.model.device, asker.model.dtype)
            out = asker.model.generate(**inputs, **options, guard=self.decoder.guard(0))
        return [(view, out.guard.view(view.index)) for view in views]


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
