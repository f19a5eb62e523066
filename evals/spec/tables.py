"""Rows of tables (.tsv, .csv, .xlsx, .parquet), by the names in their heads; `jsonl.numbered` reads them by this."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lvlm_guard.evals.errors import DataError

WIDEST = 2**24
"""Characters of a cell."""


def rows_of(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each row with its line, or its number where there are no lines; an empty cell is an empty text.

    Raises `DataError` where the table can't be read, or a row has more or fewer cells than the head.
    """
    what, lines = TABLES[path.suffix.lower()]
    names: list[str] = []
    try:
        for number, cells in lines(path):
            if not names:
                names = [str(cell) for cell in cells]
            elif any(cell not in (None, "") for cell in cells):
                if len(cells) != len(names):
                    told = f"{len(cells)} cells under {len(names)} headings"
                    raise DataError(
                        f"Line {number} of {path} has {told}: the file is torn, or a text with a tab or line break "
                        "lacks its quotes. Write the table again."
                    )
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
