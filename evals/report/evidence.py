"""The pictures of a run's report: where decoders disagree, each with the matcher's map. Optional: it needs the model.

    collect_for("runs/first")                     # loads the model of the run
    collect(answerer, tasks, read_run(folder))    # with one that is at hand

Both write small pictures and `index.json` into `evidence/`, from which the report is made without any model. What is
there of the same items is kept, so that a run that is scored again has the same files.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_guard.errors import GuardError
from lvlm_guard.evals.errors import disk_trouble
from lvlm_guard.evals.report.disagreement import LIMIT, Shown, disagreements
from lvlm_guard.evals.report.saved import Run, finished

if TYPE_CHECKING:
    from PIL.Image import Image

    from lvlm_guard.evals.infer.generate import Answerer
    from lvlm_guard.evals.report.maps import Maps, PicturesAlone
    from lvlm_guard.evals.spec.items import EvalTask, Item

EVIDENCE, INDEX = "evidence", "index.json"
PICTURES = ("picture", "map", "local", "sought_map")
LARGEST = 320  # longest side of a written picture
FORMAT = 2  # of the index; another number makes everything anew


def collect_for(folder: str | Path) -> Path:
    """Load the model of a finished run, and collect the pictures of its report; returns the index.

    Raises:
        DataError: the folder holds no finished run.
        VoidRunError: it is void.
        WeightsError: the model can't be had.
    """
    from lvlm_guard.evals.infer.prepare import prepare_run
    from lvlm_guard.evals.spec.settings import Settings

    run = finished(folder)
    prepared = prepare_run(Settings.of(run.asked["settings"]))
    return collect(prepared.answerer, prepared.tasks, run)


def collect(answerer: Answerer, tasks: Sequence[EvalTask], run: Run, limit: int = LIMIT) -> Path:
    """Write the pictures of the items on which decoders disagree, and what the matcher made of them.

    A model in this process is asked for one token, by the first method that cuts a local view, so that map and
    view are those of its answer. Without such a method the matcher is asked directly; with neither, or with a
    server, pictures stand alone and the index says so. An item whose picture can't be used keeps the reason in
    the picture's place.

    Args:
        answerer: who answered.
        tasks: what was asked, with its pictures.
        run: as it is on disk.
        limit: most items.

    Returns:
        The index.

    Raises:
        RunError: a file can't be written.
    """
    from lvlm_guard.evals.report.maps import maps_of

    maps, folder = maps_of(answerer), run.folder / EVIDENCE
    there = _read(folder / INDEX)
    items = {(task.name, item.key): item for task in tasks for item in task.items}
    entries = []
    with disk_trouble(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for one in (one for found in disagreements(run, limit).values() for one in found.shown):
            item = items[one.task, one.key]
            stem = _stem(one.task, one.key)
            made_from = _made_from(item, one, maps.version)
            entry = there.get(stem)
            if (
                entry is None
                or entry["made_from"] != made_from
                or not all((folder / f).is_file() for f in _files(entry))
            ):
                entry = {
                    "task": one.task,
                    "key": one.key,
                    "made_from": made_from,
                    **_entry(maps, one, item, stem, folder),
                }
            entries.append(entry)
        index = {"format": FORMAT, "maps": maps.about, "items": entries}
        _write(folder / INDEX, (json.dumps(index, indent=1, ensure_ascii=False) + "\n").encode())
        kept = {name for entry in entries for name in _files(entry)}
        for name in {name for entry in there.values() for name in _files(entry)} - kept:
            (folder / name).unlink(missing_ok=True)
    return folder / INDEX


def _entry(maps: Maps | PicturesAlone, one: Shown, item: Item, stem: str, folder: Path) -> dict[str, Any]:
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

    buffer = io.BytesIO()
    fitted(image, largest=LARGEST).save(buffer, format="jpeg", quality=88, optimize=True)
    _write(path, buffer.getvalue())
    return path.name


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def _stem(task: str, key: str) -> str:
    """Return an item's name in file names."""
    return hashlib.sha256(json.dumps([task, key]).encode()).hexdigest()[:12]


def _made_from(item: Item, one: Shown, version: str) -> str:
    """Return a digest of all that an item's evidence is made from."""
    digest = hashlib.sha256(json.dumps([item.prompt, item.question, one.objects, version]).encode())
    try:
        for picture in item.pictures():
            digest.update(repr(picture.size).encode() + picture.tobytes())
    except GuardError as error:
        digest.update(str(error).encode())
    return digest.hexdigest()[:16]


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Return what an earlier run left, by the item's name in file names; nothing where it can't be read."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            return {}
        return {_stem(entry["task"], entry["key"]): entry for entry in index["items"] if entry["made_from"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _files(entry: Mapping[str, Any]) -> list[str]:
    return [view[name] for view in entry["views"] for name in PICTURES if view.get(name)]
