"""A plain folder of pictures.

Captions: `a.jpg` with its captions in `a.txt`, one a line, or its rows in `a.json`; in folders of folders too, whose
names are then the categories of rows that name none. Values: a folder for each, named by it, `3/a.jpg`, `12.5/b.jpg`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lvlm_guard.adapters.data.captions import CaptionData
from lvlm_guard.adapters.data.errors import DataError
from lvlm_guard.adapters.data.jsonl import parsed
from lvlm_guard.adapters.data.pictures import SUFFIXES, Files, OnBad
from lvlm_guard.adapters.data.ranks import COUNTS, RankData
from lvlm_guard.adapters.data.rows import CaptionRow, RankRow, caption_row, number

WITHOUT = "pictures without a caption"


def read_captions(folder: str | Path, *, on_bad: OnBad = "raise") -> CaptionData:
    """Read captions that lie beside their pictures.

    Raises:
        DataError: no such folder, no picture in it, or a picture without a caption while `on_bad` is "raise".
    """
    root = Path(folder)
    rows: list[CaptionRow] = []
    without = 0
    for path in _pictures(root):
        found = _beside(root, path)
        if not found and on_bad == "raise":
            raise DataError(
                f"{path} has no caption: {path.with_suffix('.txt').name} or {path.with_suffix('.json').name} beside "
                'it would hold it. To go on without such pictures, which are then counted, give on_bad="skip" '
                "(--on-bad skip)."
            )
        without += not found
        rows += found
    return CaptionData(rows, Files(root), str(folder), on_bad, {WITHOUT: without})


def read_ranks(folder: str | Path, *, object: str, template: str = COUNTS, on_bad: OnBad = "raise") -> RankData:
    """Read values that are the names of the pictures' folders.

    Args:
        folder: holds a folder for each value.
        object: what the values are of.
        template: the instruction.
        on_bad: what becomes of a picture that can't be read.

    Raises:
        DataError: no such folder, no picture in it, or a folder whose name is no number.
    """
    root = Path(folder)
    rows = []
    for path in _pictures(root):
        inner = path.relative_to(root)
        if len(inner.parts) < 2:
            raise DataError(f"{path} lies in no folder whose name is its value: {root / '3' / path.name} for a 3.")
        value = number(inner.parts[0], "value", f"The folder {root / inner.parts[0]}")
        rows.append(RankRow(inner.as_posix(), object, value))
    return RankData(rows, Files(root), str(folder), template=template, on_bad=on_bad)


def _pictures(root: Path) -> list[Path]:
    if not root.is_dir():
        raise DataError(f"There is no folder {str(root)!r}.")
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise DataError(f"There is no picture in {str(root)!r} or its folders ({', '.join(SUFFIXES)}).")
    return found


def _beside(root: Path, path: Path) -> list[CaptionRow]:
    inner = path.relative_to(root)
    category = inner.parts[-2] if len(inner.parts) > 1 else None

    def keyed(found: Any, where: str) -> CaptionRow:
        row = caption_row({**found, "image": inner.as_posix()} if isinstance(found, dict) else found, where)
        return row if row.category else replace(row, category=category)

    for suffix in (".json", ".txt"):
        beside = path.with_suffix(suffix)
        if beside.is_file():
            try:
                text = beside.read_text(encoding="utf-8-sig")
            except UnicodeDecodeError as error:
                raise DataError(f"{beside} is not UTF-8 ({error}). Save it as UTF-8.") from error
            if suffix == ".json":
                return parsed(text, str(beside), keyed)
            return [keyed({"caption": line}, str(beside)) for line in text.splitlines() if line.strip()]
    return []
