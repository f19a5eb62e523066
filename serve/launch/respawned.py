"""Children that are started again when they die: the front, and (`matcher`) the matcher service."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event

from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.launch.child import Child

STEADY = 60.0
"""Seconds of life after which a death is a new one."""


class Respawned:
    """A child, and another one in its place where it dies.

    Args:
        name: what it is called.
        start: starts it.
        say: tells the operator.
        meanwhile: what happens until it is back, for the operator.
        waits: seconds before the next one is started, at first and at most; doubled while it keeps dying.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], Child],
        say: Callable[[str], None],
        meanwhile: str,
        waits: tuple[float, float],
    ) -> None:
        self._name, self._start, self._say, self._meanwhile = name, start, say, meanwhile
        self._first, self._longest = waits
        self._wait = self._first
        self._again: float | None = None
        self.answered = False  # once it is, a death is mended; before, it ends the start
        self._begin()

    def _begin(self) -> None:
        self._began = time.monotonic()
        self.child = self._start()

    @property
    def died_lately(self) -> bool:
        """Whether it is not the first one."""
        return self._wait > self._first

    def check(self) -> None:
        """Start it again where it died.

        Raises:
            ServeError: it never answered.
        """
        if self._again is not None:
            if time.monotonic() >= self._again:
                self._again = None
                self._begin()
            return
        if (code := self.child.ended()) is None:
            return
        self.child.kill()  # and what it had started
        if not self.answered:
            raise ServeError(
                f"{self._name} could not start (exit status {code}). {self.child.reason()} What it wrote is above."
            )
        if time.monotonic() - self._began > STEADY:
            self._wait = self._first
        self._say(
            f"{self._name} died (exit status {code}), and is started again in {self._wait:g} s; {self._meanwhile}"
        )
        self._again = time.monotonic() + self._wait
        self._wait = min(2 * self._wait, self._longest)

    def stop(self, seconds: float, hurry: Event) -> None:
        """Ask it to end, and end it where it does not.

        Args:
            seconds: it gets.
            hurry: ends the wait.
        """
        if self._again is None:
            self.child.stop(seconds, hurry)
