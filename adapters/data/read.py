"""One door to facts: a file of them, the embedded world, or whatever the library `datasets` reads.

Those are webdataset's shards (a picture with its facts in `.json`, or captions in `.txt`, a line each), its image
folders (pictures with a `metadata.jsonl`; without one a folder's name is the category of what lies in it), folders of
`save_to_disk` and the hub. Columns have the keys of facts; a mapping renames them, {"captions": "sentences"}.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from lvlm_guard.adapters.data.dataset import COUNTS, FactsData
from lvlm_guard.adapters.data.facts import KEYS, SPLITS, Facts, facts_of, known_keys, texts
from lvlm_guard.adapters.data.pictures import Files, OnBad
from lvlm_guard.adapters.errors import DataError
from lvlm_guard.embedded.captioned import KINDS, SIZES, Pictures, known, told
from lvlm_guard.embedded.catalog import CLASSES
from lvlm_guard.errors import ImageError, MissingExtraError, did_you_mean
from lvlm_guard.images import load_image

HUB = "hf:"
WORLD = "world"
FILE = "facts.jsonl"
HEADER = ("exhaustive", "instruction")
PICTURES = ("image", "jpg", "jpeg", "png", "webp")
"""Columns in which pictures are looked for; the last ones are webdataset's."""

ORDERS = {
    "count": COUNTS,
    "size": "Rank the size of the {object}.",
    "brightness": "Rank the brightness of the {object}.",
}
"""What pictures of the embedded world are ordered by, and how that is asked for."""

_SPLIT = {"train": "train", "validation": "val", "val": "val", "dev": "val", "test": "test"}


def open_facts(
    source: str | Path,
    *,
    images: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    on_bad: OnBad = "raise",
) -> FactsData:
    """Read facts from anywhere, every picture in one of three splits.

    Args:
        source: "world", "world:count", ...; a .jsonl file or a folder with facts.jsonl in it; .tar shards by path or
            glob; a folder of pictures, or of `save_to_disk`; "hf:owner/name".
        images: where a .jsonl's paths start; None for its own folder.
        columns: of what `datasets` reads: our key -> its column.
        on_bad: what becomes of a picture that is missing or can't be read.

    Raises:
        DataError: it is none of these, not as its kind must be, or an argument is for another kind.
        MissingExtraError: the library `datasets` is needed and not installed.
    """
    name, path = str(source), Path(source)
    if path.is_dir() and (path / FILE).is_file():
        path = path / FILE
    lines = path.is_file() and path.suffix in (".jsonl", ".ndjson")
    kind, _, part = name.partition(":")
    if (images and not lines) or (columns and (lines or kind == WORLD)):
        raise DataError(
            f"{name}: `images` (--images) says where the paths of a .jsonl file start, and `columns` renames those of "
            "a data set; this source takes no such argument."
        )
    if kind == WORLD:
        return world_facts(part or "captions")
    if lines:
        return _lines(path, Path(images) if images else path.parent, name, on_bad).checked().divided()
    return _parts(name, columns or {}, on_bad).divided()


def world_facts(kind: str = "captions", split: str | None = None, n: int | None = None) -> FactsData:
    """Return what is known of the embedded world's pictures, on which adapters train when nothing can be downloaded.

    Args:
        kind: see `lvlm_guard.embedded.captioned.told`; another raises `UnknownNameError`, as another split does.
        split: "train", "val" or "test"; None for the three together, marked in the facts.
        n: pictures of each split; None for 4 000, 500 and 1 000.
    """
    known(kind, KINDS, "kind of facts")
    keys = [(name, k) for name in ([split] if split else SIZES) for k in range(n or SIZES.get(name, 1000))]
    found = [facts_of(told(kind, name, k), f"{kind}/{name}/{k}") for name, k in keys]
    where = f"the embedded world's {kind}{f' ({split})' if split else ''}"
    exhaustive = CLASSES if kind in ("captions", "count") else ()
    return FactsData(found, Pictures(), where, exhaustive, template=ORDERS.get(kind, COUNTS))


def _lines(path: Path, root: Path, name: str, on_bad: OnBad) -> FactsData:
    exhaustive: tuple[str, ...] = ()
    template, headed = COUNTS, False
    found: list[Facts] = []
    for where, line in _parsed(path):
        if not isinstance(line, Mapping) or not line.keys() & set(HEADER):
            found.append(facts_of(line, where))
            continue
        if found or headed:
            raise DataError(f"{where}: a header stands in the first line only, once.")
        header, headed = known_keys(line, HEADER, f"{where}, the header"), True
        exhaustive = texts(header.get("exhaustive", ()), "exhaustive", where)
        (template,) = texts([header.get("instruction", COUNTS)], "instruction", where)
    return FactsData(found, Files(root), name, exhaustive, on_bad, template=template)


def _parsed(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield ("file, line 3", its JSON) of every line that isn't blank."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path}, line {number}", json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {number}: no JSON: {error}. Each line is one whole object in braces; a file that is one "
            "list, or was cut short, isn't read."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, after line {number}: not UTF-8 ({error}). Save the file as UTF-8.") from error


@dataclass(frozen=True)
class Column:
    """The pictures of data sets' rows, part -> data set, not decoded; keys are "part/number"."""

    parts: Mapping[str, Any] = field(repr=False)
    column: str
    name: str

    def load(self, key: str) -> Image.Image:
        """See `Store`."""
        part, _, number = key.rpartition("/")
        found = self.parts[part][int(number)][self.column]
        if isinstance(found, Mapping):
            found = found.get("bytes") or found.get("path")
        if found is None:
            raise ImageError(f"Row {number} of {self.name} ({part}) has no picture in {self.column!r}.")
        return load_image(found)

    def __str__(self) -> str:
        return self.name


def _parts(name: str, columns: Mapping[str, str], on_bad: OnBad) -> FactsData:
    parts = _loaded(name)
    present = list(next(iter(parts.values())).column_names)
    for ours, theirs in columns.items():
        if ours not in KEYS:
            raise DataError(f"Facts have no {ours!r}. {did_you_mean(ours, KEYS)}Keys: {', '.join(KEYS)}.")
        if theirs not in present:
            raise DataError(
                f"{name} has no column {theirs!r}, which was to be {ours!r}. {did_you_mean(theirs, present)}Columns: "
                f"{', '.join(present)}."
            )
    image = columns.get("image") or next((column for column in PICTURES if column in present), None)
    if image is None:
        raise DataError(
            f"{name} has no column with pictures. Columns: {', '.join(present)}. Say which it is: --column image=NAME."
        )
    found = [
        _row(row, columns, f"{part}/{number}", _SPLIT.get(part), f"{name}, row {number} of {part}", labels)
        for part, data in parts.items()
        for labels in [getattr(data.features.get("label"), "names", None)]
        for number, row in enumerate(data.select_columns([c for c in data.column_names if c not in PICTURES]))
    ]
    return FactsData(found, Column(_undecoded(parts, image), image, name), name, on_bad=on_bad)


def _row(
    row: Mapping[str, Any], columns: Mapping[str, str], key: str, split: str | None, where: str, labels: Any
) -> Facts:
    """Return the facts of a data set's row; arrow gives every row all keys that any row has, so null says nothing."""
    held: Mapping[str, Any] = row["json"] if isinstance(row.get("json"), Mapping) else row
    given = {ours: _without_null(held.get(columns.get(ours, ours))) for ours in KEYS}
    said = given["captions"] or ()
    captions = [said] if isinstance(said, str) else [_without_null(caption) for caption in said]
    if isinstance(row.get("txt"), str):
        captions += [line for line in row["txt"].splitlines() if line.strip()]
    if labels and row.get("label") is not None:
        category = {"category": labels[row["label"]]}
        captions = [category | ({"text": one} if isinstance(one, str) else one) for one in captions]
    said_split = split if given["split"] is None else given["split"]
    split = said_split if said_split in SPLITS else _SPLIT.get(str(said_split))
    return facts_of(given | {"image": key, "captions": captions, "split": split}, where)


def _without_null(told: Any) -> Any:
    return {key: value for key, value in told.items() if value is not None} if isinstance(told, Mapping) else told


def _loaded(name: str) -> dict[str, Any]:
    path = Path(name)
    shards = name.endswith(".tar") or "*" in name or (path.is_dir() and next(path.glob("*.tar"), None) is not None)
    if not (shards or name.startswith(HUB) or path.is_dir()):
        raise DataError(
            f"There is nothing called {name!r} that facts could be read from; this run's folder is {os.getcwd()!r}. A "
            "source is `world`, a .jsonl file, .tar shards, a folder of pictures, or hf:owner/name; published layouts "
            "are converted first, see `python -m lvlm_guard.adapters.data --help`."
        )
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            "Shards, folders of pictures and the hub are read with the library `datasets`, which is not installed: "
            "pip install 'lvlm-guard[train]'."
        ) from error
    try:
        if shards:
            at = str(path / "*.tar") if path.is_dir() else name
            # one part is a way of reading here, and no word on what is trained on
            return {"shards": datasets.load_dataset("webdataset", data_files={"train": at})["train"]}
        if name.startswith(HUB):
            found = datasets.load_dataset(name.removeprefix(HUB))
        elif (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset("imagefolder", data_dir=name)
            found = {"pictures": found["train"]} if set(found) == {"train"} and not (path / "train").is_dir() else found
    except Exception as error:  # the hub, the network and arrow raise dozens of kinds here
        raise DataError(
            f"The data set {name!r} can't be loaded ({type(error).__name__}: {' '.join(str(error).split())[:200]}). "
            "Look whether it is whole, and as `datasets` wants it."
        ) from error
    return dict(found) if isinstance(found, dict) else {str(found.split or "train"): found}


def _undecoded(parts: Mapping[str, Any], column: str) -> dict[str, Any]:
    """Return the pictures' column alone, as bytes or paths: our reader is stricter than the library's."""
    from datasets import Image as ImageFeature

    found = {part: data.select_columns([column]) for part, data in parts.items()}
    for part, data in found.items():
        if isinstance(data.features[column], ImageFeature):
            found[part] = data.cast_column(column, ImageFeature(decode=False))
    return found
