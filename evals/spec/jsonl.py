"""JSON lines, read and written one way everywhere: split at line feeds alone, every fault with its line.

`str.splitlines` also splits at U+2028, U+0085 and six more characters, which a sound JSON text may hold raw. Bytes of a
file opened as binary split at b"\\n" alone.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any, cast

from lvlm_guard.evals.errors import DataError, disk_trouble
from lvlm_guard.files import whole

Row = dict[str, Any]
LONGEST = 2**24  # bytes of a line: a longer one is no row, but a file without line ends, which need not fit into memory


def _lines(file: IO[bytes], name: str | Path) -> Iterator[tuple[int, Any]]:
    """Yield the number and the JSON value of each line that is not blank, one in memory at a time."""
    for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), 1):
        if len(line) > LONGEST:
            told = f"longer than {LONGEST // 2**20} MiB: JSON lines hold one row each. End each row with a line end."
            raise DataError(f"Line {number} of {name} is {told}")
        body = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if body.strip():
            try:
                yield number, json.loads(body.decode())
            except (ValueError, RecursionError) as error:
                torn = not line.endswith(b"\n")
                if isinstance(error, UnicodeDecodeError) and not (torn and error.end == len(body)):
                    coding = "utf-16" if line.startswith((b"\xff\xfe", b"\xfe\xff")) else "latin1"
                    at = f"Line {number} of {name} is no UTF-8 ({error.reason} at its byte {error.start})"
                    raise DataError(f"{at}. Convert it: iconv -f {coding} -t utf-8 {name}.") from None
                if torn:
                    told = f"is cut short ({len(line)} bytes without a line end): write the file again, or take it out"
                    raise DataError(f"Line {number} of {name}, the last, {told}.") from None
                raise DataError(f"Line {number} of {name} is no JSON: {error}.") from None


def numbered(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Yield the number and value of each row of a file: JSON lines, or one JSON list, .gz too; or a table, by its name.
    Raises `DataError` (it can't be read; a line is no JSON or no UTF-8; or it is the last, and was cut short)."""
    if Path(path).suffix.lower() in TABLES:
        yield from rows_of(Path(path))
        return
    with _opened(path) as file:
        if not file.peek(64)[:64].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            yield from _lines(file, path)
            return
        try:
            rows = json.loads(file.read().decode("utf-8-sig"))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"{path} begins as a JSON list and is none: {error}.") from None
    yield from enumerate(rows, 1)


def read(
    path: str | Path, needs: Collection[str] = (), unique: Collection[str] = (), what: str = "row"
) -> list[tuple[int, Row]]:
    """Return the numbers and rows of a file, as `numbered` reads it.

    `needs` are fields that every row must have, `unique` those that together tell rows apart (() for none), `what` is
    a row in messages. Raises `DataError` as `numbered` does, and where the file holds no row, or one is no object,
    lacks a field, or has the `unique` fields of another.
    """
    found: list[tuple[int, Row]] = []
    seen: dict[tuple[Any, ...], int] = {}
    for number, row in numbered(path):
        check_fields(row, needs, f"Line {number} of {path}", what)
        if unique:
            key = tuple(row.get(field) for field in unique)
            first = seen.setdefault(key, number)
            if first != number:
                told = ", ".join(f"{field} {value!r}" for field, value in zip(unique, key, strict=True))
                told += f" more than once, in lines {first} and {number}: they can't be told apart"
                raise DataError(f"{path} has {told}.")
        found.append((number, row))
    if not found:
        raise DataError(f"{path} holds no {what}.")
    return found


def check_fields(row: Any, needs: Collection[str], at: str, what: str = "row") -> None:
    """Raise `DataError` unless a value is an object with these fields; `at` says where it stands."""
    if not isinstance(row, dict):
        raise DataError(f"{at} is no {what}: {row!r:.120}.")
    for field in needs:
        if field not in row:
            near = get_close_matches(field, map(str, row), n=1)
            there = f"{', '.join(map(repr, row)) or 'nothing'}. " + (f"Is {near[0]!r} meant? " if near else "")
            raise DataError(f"{at} has no {field!r}; it has {there}Needed are {', '.join(needs)}.")


def write_lines(path: Path, lines: Iterable[str]) -> Path:
    """Write lines to a file that is there whole or not at all; raises `RunError` where the system refuses."""
    with disk_trouble(path.parent), whole(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
    return path


def content(path: str | Path) -> bytes:
    """Return a file's bytes, unpacked where it is gzipped; raises `DataError` where it can't be read."""
    with _opened(path) as file:
        return file.read()


def document(path: str | Path) -> Any:
    """Return the one JSON value of a file, .gz too; raises `DataError` where it can't be read."""
    try:
        return json.loads(content(path).decode("utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no JSON: {error}.") from None


@contextmanager
def _opened(path: str | Path) -> Iterator[io.BufferedReader]:
    try:
        with open(path, "rb") as plain:
            packed = plain.peek(2)[:2] == b"\x1f\x8b"
            yield io.BufferedReader(cast("io.RawIOBase", gzip.GzipFile(fileobj=plain))) if packed else plain
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}.") from error


WIDEST = 2**24  # characters of a cell


def rows_of(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each row with its line, or its number where there are no lines; an empty cell is an empty text. Raises
    `DataError` where the table can't be read, or a row has more or fewer cells than the head."""
    what, lines = TABLES[path.suffix.lower()]
    names: list[str] = []
    try:
        for number, cells in lines(path):
            if not names:
                names = [str(cell) for cell in cells]
            elif any(cell not in (None, "") for cell in cells):
                if len(cells) != len(names):
                    told = f"{len(cells)} cells under {len(names)} headings"
                    raise DataError(f"Line {number} of {path} has {told}: it is torn, or a text lacks quotes.")
                yield number, {name: "" if cell is None else cell for name, cell in zip(names, cells, strict=True)}
    except DataError:
        raise
    except ImportError:
        raise DataError(f"{path} is {what}, which needs openpyxl: pip install openpyxl, or save it as .tsv.") from None
    except Exception as error:  # openpyxl raises zipfile's, XML's and its own
        raise DataError(f"{path} can't be read as {what}: {error}. Is it torn? Write it again, or as .tsv.") from None


def _text(path: Path) -> Iterator[tuple[int, Sequence[Any]]]:
    csv.field_size_limit(WIDEST)
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        yield from ((reader.line_num, row) for row in reader)


def _sheet(path: Path) -> Iterator[tuple[int, Sequence[Any]]]:
    from openpyxl import load_workbook

    with open(path, "rb") as file:
        yield from enumerate(load_workbook(file, read_only=True, data_only=True).worksheets[0].values, 1)


def _parquet(path: Path) -> Iterator[tuple[int, Sequence[Any]]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        yield 0, file.schema_arrow.names
        rows = (row for batch in file.iter_batches(64) for row in batch.to_pylist())
        yield from ((number, list(row.values())) for number, row in enumerate(rows, 1))


TABLES: dict[str, tuple[str, Callable[[Path], Iterator[tuple[int, Sequence[Any]]]]]] = {
    ".tsv": ("a table of UTF-8 text", _text),
    ".csv": ("a table of UTF-8 text", _text),
    ".xlsx": ("an Excel table", _sheet),
    ".parquet": ("a parquet table", _parquet),
}
"""Suffix -> what it is, and its head and rows."""
