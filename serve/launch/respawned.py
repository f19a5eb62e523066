"""Children that are started again, at the same address, when they die: the front, and the matcher service."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from threading import Event, Thread

import httpx

from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.launch.child import Child, Keeper

STEADY = 60.0
"""Seconds of life after which a death is a new one."""

EVERY, MISSED = 10.0, 3
"""Seconds between looks at its health, and bad ones in a row after which a service that hangs is killed."""


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

    def check(self) -> None:
        """Start it again where it died; raises `ServeError` where it never answered."""
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
        """Ask it to end, and end it where it does not; see `Child.stop`."""
        if self._again is None:
            self.child.stop(seconds, hurry)


class OwnMatcher(Respawned):
    """A matcher service with options of `lvlm-guard maskd`; once `ready` it is at `url`, its matcher of `version`."""

    def __init__(
        self, options: Sequence[str], environment: Mapping[str, str], keeper: Keeper, say: Callable[[str], None]
    ) -> None:
        self._options, self._environment, self._keeper = tuple(options), environment, keeper
        self._asking: Thread | None = None
        self.url = self.version = ""
        away = "until it is back, requests that need it are answered 503, never unguarded."
        super().__init__("The matcher service", self._started, say, away, (1.0, 30.0))

    def _started(self) -> Child:
        self.ready, self._said, self._told = False, "", False
        self._looked, self._missed = time.monotonic(), 0
        port = self.url.rpartition(":")[2] or "0"
        command = [sys.executable, "-m", "lvlm_guard.serve.maskd", "--json", "--port", port, *self._options]
        return Child(command, self._environment, self._keeper, self._read)

    def _read(self, line: str) -> None:
        self._said += line
        if line.startswith("}"):
            (row,) = json.loads(self._said)["rows"]
            self.url, self.version = row["url"], row["matcher"]
            self.answered = self.ready = True

    def check(self) -> None:
        """Start it again where it died, or hangs; raises as `Respawned.check` does."""
        if self.child.ended() is None:
            if self.ready and not self._told and self._wait > self._first:
                self._told = True
                self._say(f"The matcher service is back at {self.url}.")
            if self._hangs():
                self._say("The matcher service hangs, and is killed.")
                self.child.kill()
        super().check()

    def _hangs(self) -> bool:
        """Return whether its health was bad too often; looks now and then, on a thread."""
        if self.ready and time.monotonic() - self._looked > EVERY and not (self._asking and self._asking.is_alive()):
            self._looked = time.monotonic()
            self._asking = Thread(target=self._ask, args=(self.child,), daemon=True)
            self._asking.start()
        return self._missed >= MISSED

    def _ask(self, child: Child) -> None:
        try:
            well = httpx.get(self.url + "/health", timeout=EVERY, trust_env=False).status_code == 200
        except httpx.HTTPError:
            well = False
        if child is self.child:
            self._missed = 0 if well else self._missed + 1


def version_at(url: str) -> str:
    """Return the version of the matcher behind another server's service; raises `ServeError` where there is none."""
    try:
        answer = httpx.get(url.rstrip("/") + "/health", timeout=10, trust_env=False)
        why = f"answers {answer.status_code} {answer.text[:200]!r}"
        with contextlib.suppress(ValueError):  # no JSON
            found = answer.json()
            if answer.status_code == 200 and isinstance(found, dict) and found.get("version"):
                return str(found["version"])
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = f"can't be reached ({type(error).__name__}: {error})"
    raise ServeError(
        f"The matcher service at {url} {why}. Start it (lvlm-guard maskd), correct --maskd, or leave --maskd out: then "
        "this server starts its own."
    )
