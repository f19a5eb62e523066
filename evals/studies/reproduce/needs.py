"""What the grid of AGLA's paper needs from elsewhere: weights, pictures, annotations, question files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_guard.evals.spec.settings import EMBEDDED
from lvlm_guard.evals.tasks.coco.chair import AGLA_PICTURES
from lvlm_guard.evals.tasks.fetching import Published
from lvlm_guard.evals.tasks.pope.files import IMANGE, QUESTIONS

if TYPE_CHECKING:
    from lvlm_guard.evals.studies.reproduce.plan import Cell

MATCHER = "Salesforce/blip-itm-large-coco"

WEIGHTS = {
    "llava-hf/llava-1.5-7b-hf": (14.1, "7.1 billion parameters in float16"),
    "Salesforce/instructblip-vicuna-7b": (31.7, "7.9 billion parameters in float32"),
    MATCHER: (1.8, "0.45 billion parameters in float32; the matcher"),
}
"""Hub id -> size in GB, and what that is."""

PICTURES = {
    "coco": (6.2, "http://images.cocodataset.org/zips/val2014.zip", "COCO val2014: COCO, A-OKVQA and CHAIR"),
    "gqa": (20.3, "https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip", "GQA"),
}
ANNOTATIONS = (
    0.24,
    "http://images.cocodataset.org/annotations/annotations_trainval2014.zip",
    "COCO's instances and captions: CHAIR's truth",
)
QUESTION_FILE = 0.0003  # GB, and a list of pictures less


@dataclass(frozen=True)
class Download:
    """Something the grid needs.

    Args:
        what: in a few words.
        place: hub id or address.
        gb: its size in GB (10^9 bytes), about.
        by_hand: whether the user has to get it; otherwise it is fetched when it is needed.
        there: whether it is here already; None: that depends on where the user keeps it.
    """

    what: str
    place: str
    gb: float
    by_hand: bool = True
    there: bool | None = None


def downloads(cells: Sequence[Cell]) -> list[Download]:
    """Return what the cells need, each once; nothing for the embedded model."""
    real = [cell for cell in cells if cell.model != EMBEDDED]
    found: dict[Download, None] = {}
    for place in _hub_places(real):
        gb, what = WEIGHTS[place]
        found[Download(f"weights, {what}", place, gb, there=cached(place))] = None
    for data in dict.fromkeys("gqa" if cell.data == "gqa" else "coco" for cell in real):
        gb, place, what = PICTURES[data]
        found[Download(f"pictures of {what}", place, gb)] = None
    if any(cell.task == "chair" for cell in real):
        gb, place, what = ANNOTATIONS
        found[Download(what, place, gb)] = None
    for cell in real:
        if not cell.settings.questions:
            for file in _files(cell):
                found[Download("question file", file.url, QUESTION_FILE, by_hand=False)] = None
    return list(found)


def absent_weights(cells: Sequence[Cell]) -> Iterator[str]:
    """Say which weights are not on this machine: a run must not begin with a download of 30 GB unasked."""
    for place in _hub_places([cell for cell in cells if cell.model != EMBEDDED]):
        if not cached(place):
            gb, _ = WEIGHTS[place]
            yield f"The weights of {place} are not here ({gb:g} GB): get them with `hf download {place}`."


def _hub_places(cells: Sequence[Cell]) -> list[str]:
    places = [cell.settings.model for cell in cells]
    matcher = [MATCHER for place in places if not _own_matcher(place)]
    return list(dict.fromkeys([*(place for place in places if place in WEIGHTS), *matcher]))


def _own_matcher(place: str) -> bool:
    """Whether a folder's model names a matcher of its own."""
    config = Path(place) / "config.json"
    told = json.loads(config.read_text(encoding="utf-8")).get("lvlm_guard") if config.is_file() else None
    return bool((told or {}).get("matcher"))


def _files(cell: Cell) -> list[Published]:
    if cell.task == "chair":
        return [AGLA_PICTURES]
    files = {kind: file for (data, kind), file in QUESTIONS.items() if data == cell.data}
    if cell.data == "coco":
        files["adversarial"] = IMANGE
    return list(files.values())


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
