"""The pictures of a run's report: where decoders disagree, each with the matcher's map. Optional: it needs the model.

    collect_for("runs/first")                     # loads the model of the run
    collect(answerer, tasks, read_run(folder))    # with one that is at hand

Both write small pictures and `index.json` into `evidence/`, from which the report is made without any model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lvlm_guard.engine.trace import SecondView
from lvlm_guard.errors import GuardError
from lvlm_guard.evals.decoders.decoder import PLAIN
from lvlm_guard.evals.errors import disk_trouble
from lvlm_guard.evals.infer.generate import Asker, prepare, prepare_run
from lvlm_guard.evals.report.disagreement import disagreements
from lvlm_guard.evals.report.saved import EVIDENCE, INDEX, PICTURES, Run, finished
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.jsonl import write_lines
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.report.pictures import fitted, overlay

LARGEST = 320  # longest side of a written picture
Views = list[dict[str, Any]]  # of an item, each picture with what the matcher made of it


def collect_for(folder: str | Path) -> Path:
    """Load the model of a finished run, and collect the pictures of its report; returns the index. Raises `DataError`
    where the folder holds no finished run, `VoidRunError`, and `WeightsError` without the model."""
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
    (about, views_of), folder = _maps_of(answerer), run.folder / EVIDENCE
    items = {(task.name, item.key): item for task in tasks for item in task.items}
    with disk_trouble(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        entries: list[dict[str, Any]] = []
        for one in (one for found in disagreements(run).values() for one in found.shown):
            views, problem = _looked(views_of, items[one.task, one.key])
            for place, view in enumerate(views):
                for what in (what for what in PICTURES if view.get(what) is not None):
                    name = f"{len(entries)}-{place}-{what}.jpg"
                    fitted(view[what], largest=LARGEST).save(folder / name, format="jpeg", quality=88, optimize=True)
                    view[what] = name
            told = {"problem": problem} if problem else {}
            entries.append({"task": one.task, "key": one.key, "views": views} | told)
        index = {"maps": about, "items": entries}
        return write_lines(folder / INDEX, [json.dumps(index, indent=1, ensure_ascii=False)])


def _looked(views_of: Callable[[Item], Views], item: Item) -> tuple[Views, str]:
    try:
        return views_of(item), ""
    except GuardError as error:
        problem = f"No relevance map: {error}"
    try:
        return _alone(item), problem
    except GuardError as error:
        return [], str(error)


def _alone(item: Item) -> Views:
    return [{"picture": picture} for picture in item.pictures()]


def _maps_of(answerer: object) -> tuple[str, Callable[[Item], Views]]:
    """Return what is shown, or why there are pictures alone, in a sentence; and what makes an item's."""
    if not isinstance(answerer, Asker):
        return "The answers came from a server, which gives no relevance maps: pictures stand alone.", _alone
    guarded = [(d, d.guard(0)) for d in answerer.decoders.values() if d.runs and d.role == "method"]
    cutting = ((d, m.assembling.matcher) for d, m in guarded if hasattr(m.assembling, "matcher") and m.branches())
    decoder, own = next(cutting, (None, None))
    matcher = own or answerer.matcher or next(iter(answerer.matchers.values()), None)
    if matcher is None:
        return "No method of this run asks a matcher, so there are no relevance maps.", _alone

    def mapped(item: Item) -> Views:
        # sums depend on what is computed together: what the run remembers could differ in the last bit
        matcher.forget()
        inputs = prepare(answerer.processor, [item])
        views = inputs["guard_views"].views()
        if decoder is None:
            found = matcher([view.image for view in views], [view.text for view in views])
            return [_shown(view, SecondView(match=match)) for view, match in zip(views, found, strict=True)]
        # "batched" makes the local view even where the first token would not need it
        options = {**PLAIN, "guard_execution": "batched", "max_new_tokens": 1, "return_dict_in_generate": True}
        with torch.inference_mode():
            inputs = inputs.to(answerer.model.device, answerer.model.dtype)
            out = answerer.model.generate(**inputs, **options, guard=decoder.guard(0))
        return [_shown(view, out.guard.view(view.index)) for view in views]

    about = "Relevance: which parts of the picture the matcher finds relevant to the question; "
    if decoder is None:
        return f"{about}no method of this run cuts a view from it.", mapped
    about += f"bright is relevant. The pale line bounds what {decoder.name} keeps in its local view, black elsewhere."
    return about, mapped


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
