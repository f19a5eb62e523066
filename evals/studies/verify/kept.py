"""What was said and judged, on disk: a line each, written as it comes, found again after any end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lvlm_guard.evals.errors import disk_trouble


class Kept:
    """Rows by key in a JSON-lines file; a line that was cut off by a crash is dropped.

    Args:
        path: the file; made with the first row.
        key: the fields that a row is found by.

    Raises:
        RunError: the disk is full or can't be written to.
    """

    def __init__(self, path: Path, key: tuple[str, ...]) -> None:
        self.path, self.key = path, key
        self._rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        with disk_trouble(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._read()

    def get(self, *key: Any) -> dict[str, Any] | None:
        """Return the row of a key; None where there is none."""
        return self._rows.get(key)

    def add(self, *rows: Mapping[str, Any]) -> None:
        """Write rows; raises `RunError` where the system refuses, and what was written before is kept."""
        lines = "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
        with disk_trouble(self.path.parent), self.path.open("a", encoding="utf-8") as file:
            file.write(lines)
        for row in rows:
            self._rows[tuple(row[name] for name in self.key)] = dict(row)

    def _read(self) -> None:
        for line in self.path.read_bytes().splitlines():
            try:
                row = json.loads(line)
                self._rows[tuple(row[name] for name in self.key)] = row
            except (ValueError, KeyError, TypeError):
                continue
        part = self.path.with_suffix(".part")
        part.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self._rows.values()), encoding="utf-8"
        )
        part.replace(self.path)
