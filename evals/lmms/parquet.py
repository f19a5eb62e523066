"""Rows with pictures as parquet files that `datasets`, and so lmms-eval, reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Write rows whose `image` is {"bytes": ..., "path": ...}; returns their number.

    A picture with a path alone stays where it is. (`Dataset.to_parquet` would copy it into the file.)
    """
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    listed = [dict(row) for row in rows]
    features = datasets.Features(
        {name: _feature(value, datasets) for name, value in listed[0].items() if name != "image"}
        | {"image": datasets.Image()}
    )
    table = pa.Table.from_pylist(listed, schema=features.arrow_schema)
    pq.write_table(table, path, compression="zstd")
    return len(listed)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a parquet file as Python data."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def _feature(value: Any, datasets: Any) -> Any:
    import pyarrow as pa

    return datasets.features.features.generate_from_arrow_type(pa.array([value]).type)
