"""Finished answers on disk, found again after any end: the same command then asks only for the rest.

Unlike lmms-eval's response cache, the answers are keyed by the whole guard setting, the code and the weights, and by
what the document says and shows; sampled ones are kept too, and all with what they cost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from lvlm_guard.evals.errors import disk_trouble
from lvlm_guard.evals.spec.items import Said

_SAID = [field.name for field in fields(Said)]


class Store:
    """Answers of one setting.

    Args:
        folder: of any number of settings; made if need be.
        setting: all that decides the answers, as JSON data.
        rank: of this process. Each writes a file of its own, and all are read.

    Raises:
        RunError: the disk is full or can't be written to.
    """

    def __init__(self, folder: Path, setting: Mapping[str, Any], rank: int = 0) -> None:
        told = json.dumps(setting, sort_keys=True, indent=1)
        self.folder = folder
        self.name = hashlib.sha256(told.encode()).hexdigest()[:16]
        self._path = folder / f"{self.name}.{rank}.jsonl"
        self._held: dict[str, Said] = {}
        with disk_trouble(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{self.name}.json").write_text(told + "\n", encoding="utf-8")
            for path in sorted(folder.glob(f"{self.name}.*.jsonl")):
                self._held |= _read(path)
            self._end_line()

    def get(self, key: str) -> Said | None:
        """Return an answer, or None where there is none."""
        return self._held.get(key)

    def add(self, answers: Iterable[tuple[str, Mapping[str, Any], Said]]) -> None:
        """Write answers: key, where they belong (for readers), and what was said.

        Raises:
            RunError: the disk is full or can't be written to; what was written before is kept.
        """
        kept = list(answers)
        self._held |= {key: said for key, _, said in kept}
        lines = [json.dumps({"document": key, **place, **asdict(said)}) + "\n" for key, place, said in kept]
        with disk_trouble(self.folder), self._path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))

    def _end_line(self) -> None:
        """End a line that was cut off, so that the next one is not lost with it."""
        if self._path.exists() and self._path.read_bytes()[-1:] not in (b"", b"\n"):
            with self._path.open("ab") as file:
                file.write(b"\n")


def _read(path: Path) -> dict[str, Said]:
    found = {}
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
            found[row["document"]] = Said(**{name: row[name] for name in _SAID})
        except (ValueError, KeyError, TypeError):
            continue  # cut off in the middle of a line
    return found
