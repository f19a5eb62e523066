"""Finished answers on disk, found again after any end: the same command then asks only for the rest.

Unlike lmms-eval's response cache, the answers are keyed by the whole guard setting, the code and the weights, and by
what the document says and shows; sampled ones are kept too, and all with what they cost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from lvlm_guard.evals.errors import disk_trouble
from lvlm_guard.evals.spec.items import Said

_SAID = [field.name for field in fields(Said)]


class Store:
    """Answers of one setting (all that decides them, as JSON data), `held` by the digest of their document.

    A folder holds any number of settings. Each process, by its rank, writes a file of its own, and all are read.
    Raises `RunError` where the disk is full or can't be written to.
    """

    def __init__(self, folder: Path, setting: Mapping[str, Any], rank: int = 0) -> None:
        told = json.dumps(setting, sort_keys=True, indent=1)
        name = hashlib.sha256(told.encode()).hexdigest()[:16]
        self.folder, self._path, self.held = folder, folder / f"{name}.{rank}.jsonl", dict[str, Said]()
        with disk_trouble(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.json").write_text(told + "\n", encoding="utf-8")
            for line in (line for path in sorted(folder.glob(f"{name}.*.jsonl")) for line in path.open("rb")):
                with suppress(ValueError, KeyError, TypeError):  # cut off in the middle of a line
                    row = json.loads(line)
                    self.held[row["document"]] = Said(**{name: row[name] for name in _SAID})
            if self._path.exists() and self._path.read_bytes()[-1:] not in (b"", b"\n"):
                with self._path.open("ab") as file:  # so that the next line is not lost with the cut one
                    file.write(b"\n")

    def add(self, answers: Iterable[tuple[str, Mapping[str, Any], Said]]) -> None:
        """Write answers: digest, where they belong, what was said; on `RunError` what was written before is kept."""
        kept = list(answers)
        self.held |= {key: said for key, _, said in kept}
        lines = [json.dumps({"document": key, **place, **asdict(said)}) + "\n" for key, place, said in kept]
        with disk_trouble(self.folder), self._path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
