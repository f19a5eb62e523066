"""The pictures of a run's report: chosen where decoders disagree, each with the matcher's map.

    collect(answerer, tasks, choose(samples, run), folder)

`collect` writes small pictures and `index.json`, from which the report is made without any model. What is
there of the same items is kept, so that a run that is scored again has the same files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lvlm_guard.errors import GuardError
from lvlm_guard.evals.errors import disk_trouble
from lvlm_guard.evals.report.disagreement import STANDINGS, Standing, absent_objects, disagreements
from lvlm_guard.evals.spec.items import EvalTask, Item

if TYPE_CHECKING:
    from PIL.Image import Image

    from lvlm_guard.evals.infer.generate import Answerer
    from lvlm_guard.evals.report.maps import Maps, PicturesAlone

INDEX = "index.json"
LIMIT = 60
LARGEST = 320  # longest side of a written picture
OBJECTS = 4  # absent objects of a caption that the matcher is asked about
FORMAT = 1  # of the index; another number makes everything anew


class Chosen(NamedTuple):
    """An item whose picture is shown, and for captions the objects named in vain."""

    task: str
    key: str
    objects: tuple[str, ...] = ()


def choose(samples: Sequence[Mapping[str, Any]], run: Mapping[str, Any], limit: int = LIMIT) -> list[Chosen]:
    """Return the items to show, by rule: what a method broke, what it fixed, what can't be read.

    Every task, method and outcome gets its turn, so that none fills the page; among items of one kind, other
    pictures come before further questions about one. Captions that only name more or fewer of the picture's
    objects fill what is left. None of a void run.

    Args:
        samples: rows of `samples.jsonl`.
        run: what `run.json` holds.
        limit: most items.
    """
    if run["status"] != "complete":
        return []
    heaps: dict[Standing, dict[tuple[str, str], list[int]]] = {standing: {} for standing in STANDINGS}
    for task, place, found in disagreements(samples, run):
        for decoder, standing in found.items():
            heaps[standing].setdefault((task["name"], decoder), []).append(place)
    first = [heap for standing in STANDINGS[:-1] for heap in heaps[standing].values()]
    places = _in_turn([_spread(heap, samples) for heap in first], limit)
    places |= _in_turn([_spread(heap, samples) for heap in heaps["changed"].values()], limit, places)
    tasks = {task["name"]: task for task in run["tasks"]}
    return [
        Chosen(sample["task"], sample["key"], tuple(absent_objects(tasks[sample["task"]], sample, run)[:OBJECTS]))
        for sample in (samples[place] for place in sorted(places))
    ]


def _spread(heap: Sequence[int], samples: Sequence[Mapping[str, Any]]) -> list[int]:
    """Put the first question about each picture before the second ones."""
    seen: dict[str, int] = {}
    order = []
    for place in heap:
        picture = samples[place]["picture"]
        seen[picture] = seen.get(picture, 0) + 1
        order.append((seen[picture], place))
    return [place for _, place in sorted(order)]


def _in_turn(heaps: Sequence[Sequence[int]], limit: int, have: Iterable[int] = ()) -> dict[int, None]:
    taken = dict.fromkeys(have)
    queues = [iter(heap) for heap in heaps]
    while queues and len(taken) < limit:
        for queue in list(queues):
            place = next((place for place in queue if place not in taken), None)
            if place is None:
                queues.remove(queue)
            elif len(taken) < limit:
                taken[place] = None
    return taken


def collect(answerer: Answerer, tasks: Sequence[EvalTask], chosen: Sequence[Chosen], folder: Path) -> Path:
    """Write the pictures of the chosen items and what the matcher made of them; returns the index.

    A model in this process is asked for one token, by the first method that cuts a local view, so that map and
    view are those of its answer. Without such a method the matcher is asked directly; with neither, or with a
    server, pictures stand alone and the index says so. An item whose picture can't be used keeps the reason in
    the picture's place.

    Raises:
        RunError: a file can't be written.
    """
    from lvlm_guard.evals.report.maps import maps_of

    maps = maps_of(answerer)
    there = _read(folder / INDEX)
    items = {(task.name, item.key): (task, item) for task in tasks for item in task.items}
    entries = []
    with disk_trouble(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for one in chosen:
            task, item = items[one.task, one.key]
            stem, made_from = _identity(task, item, one, maps.version)
            entry = there.get(stem)
            if entry is None or entry["made_from"] != made_from or not _whole(entry, folder):
                entry = {"task": one.task, "key": one.key, "made_from": made_from} | _entry(
                    maps, one, item, stem, folder
                )
            entries.append(entry)
        index = {"format": FORMAT, "maps": maps.told, "items": entries}
        _write(folder / INDEX, (json.dumps(index, indent=1, ensure_ascii=False) + "\n").encode())
        kept = {name for entry in entries for name in _files(entry)}
        for name in {name for entry in there.values() for name in _files(entry)} - kept:
            (folder / name).unlink(missing_ok=True)
    return folder / INDEX


def _entry(maps: Maps | PicturesAlone, one: Chosen, item: Item, stem: str, folder: Path) -> dict[str, Any]:
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
            for what in ("picture", "map", "local", "sought_map")
            if view.get(what) is not None
        }
        views.append(view | files)
    return found | {"views": views}


def _save(image: Image, path: Path) -> str:
    import io

    from lvlm_guard.report.pictures import fitted

    buffer = io.BytesIO()
    fitted(image, largest=LARGEST).save(buffer, format="jpeg", quality=88, optimize=True)
    _write(path, buffer.getvalue())
    return path.name


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def _identity(task: EvalTask, item: Item, one: Chosen, version: str) -> tuple[str, str]:
    """Return the item's name in file names, and a digest of all that its evidence is made from."""
    stem = hashlib.sha256(json.dumps([one.task, one.key]).encode()).hexdigest()[:12]
    digest = hashlib.sha256(json.dumps([item.prompt, item.question, one.objects, version, task.digest()]).encode())
    try:
        for picture in item.pictures():
            digest.update(repr(picture.size).encode() + picture.tobytes())
    except GuardError as error:
        digest.update(str(error).encode())
    return stem, digest.hexdigest()[:16]


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Return what an earlier run left, by the item's name in file names; nothing where it can't be read."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            return {}
        return {
            hashlib.sha256(json.dumps([entry["task"], entry["key"]]).encode()).hexdigest()[:12]: entry
            for entry in index["items"]
            if entry["made_from"]
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _whole(entry: Mapping[str, Any], folder: Path) -> bool:
    return all((folder / name).is_file() for name in _files(entry))


def _files(entry: Mapping[str, Any]) -> list[str]:
    names = ("picture", "map", "local", "sought_map")
    return [view[name] for view in entry["views"] for name in names if view.get(name)]
