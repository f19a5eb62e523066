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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_guard.errors import GuardError
from lvlm_guard.evals.errors import disk_trouble
from lvlm_guard.evals.report.disagreement import LIMIT, Shown, disagreements
from lvlm_guard.evals.report.saved import Run, finished, write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

    from lvlm_guard.evals.report.maps import Maps
    from lvlm_guard.evals.spec.items import EvalTask, Item

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


def collect(answerer: object, tasks: Sequence[EvalTask], run: Run, limit: int = LIMIT) -> Path:
    """Write the pictures of the items on which decoders disagree, and what the matcher made of them; return the index.

    A model in this process is asked for one token, by the first method that cuts a local view, so that map and
    view are those of its answer. Without such a method the matcher is asked directly; with neither, or with a
    server, pictures stand alone and the index says so. An item whose picture can't be used keeps the reason in
    the picture's place. Raises `RunError` where a file can't be written.
    """
    from lvlm_guard.evals.report.maps import maps_of

    maps, folder = maps_of(answerer), run.folder / EVIDENCE
    items = {(task.name, item.key): item for task in tasks for item in task.items}
    shown = [one for found in disagreements(run, limit).values() for one in found.shown]
    told = [[run.asked.get("identity"), maps.version, FORMAT], [[one.task, one.key, one.objects] for one in shown]]
    made_from = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    with disk_trouble(folder):
        if not _there(folder, made_from):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            entries = [
                {"task": one.task, "key": one.key} | _entry(maps, one, items[one.task, one.key], f"{number}", folder)
                for number, one in enumerate(shown)
            ]
            index = {"made_from": made_from, "maps": maps.about, "items": entries}
            write_whole(folder, INDEX, json.dumps(index, indent=1, ensure_ascii=False) + "\n")
    return folder / INDEX


def _there(folder: Path, made_from: str) -> bool:
    """Return whether all that would be made is there already."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        names = [view[name] for entry in index["items"] for view in entry["views"] for name in PICTURES if name in view]
        return bool(index["made_from"] == made_from and all((folder / name).is_file() for name in names))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _entry(maps: Maps, one: Shown, item: Item, stem: str, folder: Path) -> dict[str, Any]:
    try:
        found = maps.of(item, one.objects)
    except GuardError as error:
        try:
            found = {"views": [{"picture": picture} for picture in item.pictures()]}
        except GuardError as unusable:
            return {"problem": str(unusable), "views": []}
        found["problem"] = f"No relevance map: {error}"
    views = []
    for number, view in enumerate(found["views"]):
        files = {
            what: _save(view.pop(what), folder / f"{stem}-{number}-{what}.jpg")
            for what in PICTURES
            if view.get(what) is not None
        }
        views.append(view | files)
    return found | {"views": views}


def _save(image: Image, path: Path) -> str:
    from lvlm_guard.report.pictures import fitted

    fitted(image, largest=LARGEST).save(path, format="jpeg", quality=88, optimize=True)
    return path.name
