"""Rows of tables (.tsv, .csv, .xlsx, .parquet), by the names in their heads; `jsonl.numbered` reads them by this."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lvlm_guard.evals.errors import DataError

TABLES = (".tsv", ".csv", ".xlsx", ".parquet")
WIDEST = 2**24
"""Characters of a cell."""


def rows_of(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each row with its line, or its number in a table without lines; an empty cell is an empty text.

    Raises:
        DataError: it can't be read, or a row has more or fewer cells than the head.
    """
    if path.suffix.lower() == ".parquet":
        yield from _parquet(path)
        return
    lines = _sheet(path) if path.suffix.lower() == ".xlsx" else _csv(path)
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


def _csv(path: Path) -> Iterator[tuple[int, Sequence[Any]]]:
    csv.field_size_limit(WIDEST)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            yield from ((reader.line_num, row) for row in reader)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read as UTF-8 text: {error}. Convert it: iconv -f latin1 -t utf-8.") from None
    except csv.Error as error:
        raise DataError(f"{path}, after line {reader.line_num}: {error}. Is it torn? Write the table again.") from None


def _sheet(path: Path) -> Iterator[tuple[int, Sequence[Any]]]:
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise DataError(
            f"{path} is an Excel table, which needs the package openpyxl: pip install openpyxl, or save it as .tsv."
        ) from None
    try:
        book = load_workbook(io.BytesIO(path.read_bytes()), read_only=True, data_only=True)
        yield from enumerate(book.worksheets[0].iter_rows(values_only=True), 1)
    except Exception as error:  # openpyxl raises zipfile's, XML's and its own
        raise DataError(f"{path} can't be read as an Excel table: {error}. Save it again, or as .tsv.") from None


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield from enumerate((row for batch in file.iter_batches(64) for row in batch.to_pylist()), 1)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} can't be read: {error}. Download it again.") from None
