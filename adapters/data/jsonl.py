"""Read and write the files of rows, one JSON object a line, UTF-8.

A file of values may begin with a header, {"exhaustive": ["horse", "dog"], "instruction": "Rank the numbers of
{object}."}: of which objects absence means 0, and what the ranker is asked. Both keys may be left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lvlm_guard.adapters.data.captions import CaptionData
from lvlm_guard.adapters.data.errors import DataError
from lvlm_guard.adapters.data.pictures import Files, OnBad
from lvlm_guard.adapters.data.ranks import COUNTS, RankData
from lvlm_guard.adapters.data.rows import CaptionRow, RankRow, Row, as_json, caption_row, rank_row
from lvlm_guard.files import whole

HEADER = ("exhaustive", "instruction")


def read_captions(path: str | Path, *, images: str | Path | None = None, on_bad: OnBad = "raise") -> CaptionData:
    """Read captions.

    Args:
        path: the file.
        images: the folder from which its pictures' paths start; None for the file's own.
        on_bad: what becomes of a picture that can't be read.

    Raises:
        DataError: there is no such file, or a line is none of this format; the message names the line.
    """
    file = Path(path)
    rows = [caption_row(found, where) for where, found in _lines(file)]
    data = CaptionData(rows, Files(Path(images) if images else file.parent), str(path), on_bad)
    Files.check(data.store, data.images)  # type: ignore[arg-type]
    return data


def read_ranks(path: str | Path, *, images: str | Path | None = None, on_bad: OnBad = "raise") -> RankData:
    """Read values; arguments and errors as `read_captions`."""
    file = Path(path)
    header: dict[str, Any] = {}
    rows: list[RankRow] = []
    for where, found in _lines(file):
        if isinstance(found, Mapping) and found.keys() & set(HEADER):
            if rows or header:
                raise DataError(f"{where}: a header stands in the first line only, once.")
            header = _header(found, where)
        else:
            rows.append(rank_row(found, where))
    store = Files(Path(images) if images else file.parent)
    data = RankData(
        rows, store, str(path), header.get("exhaustive", ()), header.get("instruction", COUNTS), on_bad=on_bad
    )
    store.check(data.images)
    return data


def write_captions(path: str | Path, rows: Iterable[CaptionRow]) -> Path:
    """Write a file that `read_captions` reads; it appears whole or not at all."""
    return _write(Path(path), map(as_json, rows))


def write_ranks(
    path: str | Path, rows: Iterable[RankRow], *, exhaustive: Collection[str] = (), template: str = COUNTS
) -> Path:
    """Write a file that `read_ranks` reads; it appears whole or not at all."""
    header = {"exhaustive": list(exhaustive), "instruction": template}

    def lines() -> Iterator[str]:
        yield json.dumps(header, ensure_ascii=False)
        yield from map(as_json, rows)

    return _write(Path(path), lines())


def parsed(text: str, where: str, row: Callable[[Any, str], Row]) -> list[Row]:
    """Return the rows of a JSON text that is one row or a list of them; raises `DataError`."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: no JSON: {error}.") from error
    return [row(one, where) for one in (found if isinstance(found, list) else [found])]


def _header(found: Mapping[str, Any], where: str) -> dict[str, Any]:
    strange = [name for name in found if name not in HEADER]
    if strange:
        raise DataError(f"{where}: a header holds {' and '.join(map(repr, HEADER))}, not {strange[0]!r}.")
    objects = found.get("exhaustive", [])
    if not isinstance(objects, list) or not all(isinstance(name, str) for name in objects):
        raise DataError(f'{where}: "exhaustive" must be a list of objects\' names; got {objects!r}.')
    if not isinstance(found.get("instruction", ""), str):
        raise DataError(f'{where}: "instruction" must be a sentence; got {found["instruction"]!r}.')
    return dict(found)


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield ("file, line 3", its JSON) of every line that isn't blank."""
    if not path.is_file():
        raise DataError(f"There is no file {str(path)!r}; this run's folder is {os.getcwd()!r}.")
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


def _write(path: Path, lines: Iterable[str]) -> Path:
    with whole(path) as part, part.open("w", encoding="utf-8") as out:
        for line in lines:
            out.write(line + "\n")
    return path
