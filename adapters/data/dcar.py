"""The published layout of DCAR's retrieval data as captions with negatives (arXiv:2508.04028).

A JSON object keyed by name; each entry has `file_name`, `file_path`, `positive` and `negative` (four of them), some
`class_name`. That data carries no licence: it is not shipped, and read only from where a user has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lvlm_guard.adapters.data.errors import DataError
from lvlm_guard.adapters.data.published import read_json
from lvlm_guard.adapters.data.rows import CaptionRow, caption_row

_KEYS = ("file_name", "file_path", "positive", "negative", "class_name")


def convert(path: str | Path, *, meta: str | None = None, split: str | None = None) -> list[CaptionRow]:
    """Return the rows; negatives that equal their caption are still in them, `CaptionData` drops and counts those.

    Args:
        path: the file.
        meta: what all pictures are of: "cat".
        split: of all rows.

    Raises:
        DataError: the file is none of this layout.
    """
    found = read_json(Path(path))
    if not isinstance(found, Mapping) or not found:
        raise DataError(f"{path} is none of the published layout: an object keyed by name is expected.")
    return [_row(entry, f"{path}, entry {name!r}", meta, split) for name, entry in found.items()]


def _row(entry: Any, where: str, meta: str | None, split: str | None) -> CaptionRow:
    if not isinstance(entry, Mapping) or "positive" not in entry or not {"file_name", "file_path"} & entry.keys():
        raise DataError(f"{where}: expected are {', '.join(_KEYS)}; got {str(entry)[:80]}.")
    negative = entry.get("negative") or []
    return caption_row(
        {
            "image": _image(str(entry.get("file_path") or ""), str(entry.get("file_name") or "")),
            "caption": entry["positive"],
            "category": entry.get("class_name"),
            "meta": meta,
            "negatives": [negative] if isinstance(negative, str) else negative,
            "split": split,
        },
        where,
    )


def _image(folder: str, name: str) -> str:
    """Return the picture's path: in some of the files `file_path` is its folder, in others all of it."""
    place = PurePosixPath(folder.replace("\\", "/"))
    if not name or place.name == name or place.suffix:
        return str(place)
    return str(place / name)
