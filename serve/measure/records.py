"""What a run has measured, one line of JSON each, and the file that it goes on from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lvlm_guard.serve.errors import ServeError


@dataclass(frozen=True)
class Record:
    """One block of one arm.

    Args:
        task: "caption" or "question".
        at_once: requests in flight.
        block: its number.
        server: of the arm.
        guard: of the arm.
        requests: answered.
        seconds: from the first to the last.
        tokens: of all answers.
        first: seconds to the first text, of each.
        matched: seconds until masks or scores were there, summed over the requests; None: not told.
    """

    task: str
    at_once: int
    block: int
    server: str
    guard: str | None
    requests: int
    seconds: float
    tokens: int
    first: tuple[float, ...]
    matched: float | None = None


class Records:
    """The records of a run, in memory and, where one is given, in a file.

    Args:
        file: None: in memory alone.
        settings: of the run; a file of other settings is not added to.

    Raises:
        ServeError: the file is of another run, or no such file.
    """

    def __init__(self, file: Path | None, settings: Mapping[str, Any]) -> None:
        self.all: list[Record] = []
        self._file = file
        head = json.dumps(settings)
        if file is None:
            return
        lines = file.read_text().splitlines() if file.exists() else []
        if not lines:
            file.write_text(head + "\n")
        elif lines[0] != head:
            raise ServeError(f"{file} holds a run with other settings: {lines[0]:.300}. Give another --out.")
        for number, line in enumerate(lines[1:], 2):
            try:
                told = json.loads(line)
                self.all.append(Record(**{**told, "first": tuple(told["first"])}))
            except (ValueError, TypeError, KeyError) as error:
                raise ServeError(f"Line {number} of {file} is no record ({error}): delete it, or the file.") from error

    def add(self, record: Record) -> None:
        """Keep a record."""
        self.all.append(record)
        if self._file is not None:
            with self._file.open("a") as file:
                file.write(json.dumps(asdict(record)) + "\n")

    def has(self, task: str, at_once: int, block: int, server: str, guard: str | None) -> bool:
        """Return whether an arm's block is measured."""
        wanted = (task, at_once, block, server, guard)
        return any((one.task, one.at_once, one.block, one.server, one.guard) == wanted for one in self.all)
