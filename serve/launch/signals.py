"""Signals that end a server."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event


@dataclass
class Signals:
    """What came.

    Args:
        stop: set by the first signal: a clean end.
        hurry: set by the second: a quick one.
        came: their numbers.
    """

    stop: Event = field(default_factory=Event)
    hurry: Event = field(default_factory=Event)
    came: list[int] = field(default_factory=list)

    def take(self, number: int, _: object) -> None:
        """Handle a signal. No exception is raised: it would come between the start of a process and its keeping."""
        self.came.append(number)
        (self.hurry if self.stop.is_set() else self.stop).set()


@contextmanager
def taken() -> Iterator[Signals]:
    """Take SIGTERM, and SIGINT and SIGHUP unless whoever started us had them ignored (nohup)."""
    signals = Signals()
    before = {}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, signals.take)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
