"""The rows of anyone's file, one at a time: JSON lines, a JSON list, or a table (.tsv, .csv, .xlsx)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.spec import jsonl

Row = dict[str, Any]
TABLES = (".tsv", ".csv", ".xlsx")
WIDEST = 2**24
"""Characters of a cell of a table."""


def numbered(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield each row of a file with its line, or its number in a list or table.

    Raises:
        DataError: the file can't be read, is empty, or a line is no row; the message names it.
    """
    if path.suffix == ".parquet":
        raise DataError(f"{path} is a run's table, without its questions: give the run's folder, {path.parent}, alone.")
    number = 0
    for number, row in _tabled(path) if path.suffix.lower() in TABLES else jsonl.numbered(path):
        jsonl.check_fields(row, (), f"Line {number} of {path}", "answer")
        yield number, row
    if not number:
        raise DataError(f"{path} holds no answer: it is empty. Was the run that wrote it stopped?")


def _tabled(path: Path) -> Iterator[tuple[int, Row]]:
    if path.suffix.lower() == ".xlsx":
        yield from _with_heading(path, enumerate(_sheet(path), 1))
        return
    csv.field_size_limit(WIDEST)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            yield from _with_heading(path, ((reader.line_num, row) for row in reader))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read as UTF-8 text: {error}. Convert it: iconv -f latin1 -t utf-8.") from None
    except csv.Error as error:
        raise DataError(f"{path}, after line {reader.line_num}: {error}. Is it torn? Write the table again.") from None


def _with_heading(path: Path, lines: Iterable[tuple[int, Sequence[Any]]]) -> Iterator[tuple[int, Row]]:
    """Yield rows by the names in the first line; an empty cell is an empty text."""
    names: list[str] = []
    for number, cells in lines:
        if not names:
            names = [str(cell) for cell in cells]
        elif any(cell not in (None, "") for cell in cells):
            if len(cells) != len(names):
                raise DataError(
                    f"Line {number} of {path} has {len(cells)} cells under {len(names)} headings: the file is torn, or "
                    "a text with a tab or line break lacks its quotes. Write the table again."
                )
            yield number, {name: "" if cell is None else cell for name, cell in zip(names, cells, strict=True)}


def _sheet(path: Path) -> Iterator[Sequence[Any]]:
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise DataError(
            f"{path} is an Excel table, which needs the package openpyxl: pip install openpyxl, or save it as .tsv."
        ) from None
    try:
        book = load_workbook(io.BytesIO(path.read_bytes()), read_only=True, data_only=True)
        yield from book.worksheets[0].iter_rows(values_only=True)
    except Exception as error:  # openpyxl raises zipfile's, XML's and its own
        raise DataError(f"{path} can't be read as an Excel table: {error}. Save it again, or as .tsv.") from None
