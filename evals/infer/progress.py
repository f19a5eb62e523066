"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 15.0  # seconds between plain lines


class Meter:
    """Counts work done; use as a context manager.

    Args:
        total: units of work.
        unit: what is counted, in the plural.
        echo: where plain lines go when the error stream is no terminal.
        bar: whether to draw a bar; None: when the error stream is a terminal.
    """

    def __init__(self, total: int, unit: str, echo: Callable[[str], object], bar: bool | None = None) -> None:
        self.total, self.unit, self._echo, self._done = total, unit, echo, 0
        self._began = self._said = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty() if bar is None else bar:
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(unit, total=total)

    def __enter__(self) -> Meter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int, text: str = "") -> None:
        """Add `count` units; `text` says what is being done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(self._task, advance=count, description=text or self.unit)
            return
        now = time.monotonic()
        if now - self._said >= EVERY and self._done < self.total:
            self._said = now
            left = (now - self._began) * (self.total - self._done) / max(1, self._done)
            done = f"  {100 * self._done // self.total:3d} %  {self._done} of {self.total} {self.unit}"
            self._echo(f"{done}{f' ({text})' if text else ''}, about {left:.0f} s left")
