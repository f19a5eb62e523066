"""What every server of `serve` has: a matcher service and a front, started in order and watched over."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import httpx

from lvlm_guard.embedded.catalog import CLASSES
from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.front.places import Hosts
from lvlm_guard.serve.front.settings import KEY, FrontSettings, limits_of
from lvlm_guard.serve.launch.child import Child, Keeper
from lvlm_guard.serve.launch.command import for_front, for_matcher, front_command, patience_of
from lvlm_guard.serve.launch.installed import AUDIO
from lvlm_guard.serve.launch.passed import Passed
from lvlm_guard.serve.launch.respawned import OwnMatcher, Respawned, version_at
from lvlm_guard.serve.maskd.run import GRACE as MATCHER_GRACE
from lvlm_guard.serve.settings import ServeSettings
from lvlm_guard.serve.sockets import bound, url_of
from lvlm_guard.serve.vote.ballot import OBJECTS, served_vocabulary

GRACE = 30.0
"""Seconds that vLLM gets to end once no request runs any more, and the front besides its --shutdown-timeout."""

STILL = 60.0
"""Seconds after which a start says that it goes on."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Ready:
    """A server that is open.

    Args:
        url: of the server; clients add /v1.
        names: of the models, plain and guarded.
        maskd, matcher: URL of the matcher service and version of its matcher; None where no guard needs it.
        pid: of the process that watches; a signal to it stops everything.
    """

    url: str
    names: tuple[str, ...]
    guards: tuple[str, ...]
    maskd: str | None
    matcher: str | None
    pid: int


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


class Stopped(Exception):
    """A signal came, and all is stopped."""


class Engine(Child):
    """vLLM, without which nothing goes on."""

    def check(self) -> None:
        """Raise `ServeError` that says why where it is gone."""
        if (code := self.ended()) is None:
            return
        reason = self.reason()
        if "torchaudio" in reason or "torchcodec" in reason or self.wrote("libtorchaudio"):
            reason += f" The sound and video packages that come with vLLM break its import here: {AUDIO}."
        how = f"by signal {-code}" if code < 0 else f"with exit status {code}"
        raise ServeError(
            f"vLLM ended {how}, so everything is stopped. {reason or 'It gave no reason.'} Its log is above."
        )


class Parts(ABC):
    """What `serve` starts, in the order in which it is started.

    Args:
        settings: the user's.
        say: tells the operator.
        keeper: ends the children should we be killed.
        signals: that ask for the end.
    """

    def __init__(self, settings: ServeSettings, say: Say, keeper: Keeper, signals: Signals) -> None:
        self._given, self._say, self._keeper, self._signals = settings, say, keeper, signals
        self._parts: list[tuple[Respawned | Engine, float]] = []  # as they were started; seconds to end

    def _settle(self, stack: ExitStack, embedded: bool) -> None:
        """Take folder and address, which a stack gives back; settle what is named and what limits there are."""
        given = self._given
        Hosts(given.image_hosts)
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lvlm-guard-serve-")))
        self._keeper.remove_at_end(self._folder)
        self._objects(embedded)
        self._reserved = stack.enter_context(bound(given.host, given.port))
        self._limits = limits_of(given.limits)
        self._patience = patience_of(given.passed)
        if not os.environ.get(KEY) and given.host not in ("127.0.0.1", "localhost", "::1"):
            self._say(f"There is no API key: whoever reaches {given.host} is answered. Set {KEY} to ask for one.")

    @abstractmethod
    def _open(self, ready: Callable[[Ready], None]) -> None:
        """Start all parts, and call `ready` once they answer."""

    def _objects(self, embedded: bool) -> None:
        """Settle what free text may name, for all processes alike."""
        if self._given.objects is not None:
            os.environ[OBJECTS] = str(Path(self._given.objects).resolve())
        elif embedded and not os.environ.get(OBJECTS):
            place = self._folder / "objects.txt"
            place.write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
            os.environ[OBJECTS] = str(place)
        served_vocabulary()

    def run(self, ready: Callable[[Ready], None]) -> None:
        """Serve until a signal; whatever happens, nothing is left running.

        Raises:
            GuardError: something could not be started, or died.
            Stopped: a signal came.
        """
        try:
            self._open(ready)
            self._until(lambda: False)
        finally:
            for part, seconds in reversed(self._parts):  # what runs gets to end while all behind it still works
                part.stop(seconds, self._signals.hurry)

    def _start_front(self, more: Mapping[str, object], told: str) -> str:
        """Start the front with settings beside those that every front has; return its address once it answers."""
        given, counted = self._given, self._folder / "counted"
        counted.mkdir()
        front = FrontSettings(
            origins=_origins(given.passed),
            image_hosts=given.image_hosts,
            most_pictures=given.most_pictures,
            **{**self._limits, **more},
        )
        words = front_command(given.passed, self._reserved.fileno(), given.front_workers)
        started, sockets = for_front(front, counted), [self._reserved.fileno()]
        again = Respawned(
            "The front",
            lambda: Child(words, started, self._keeper, sockets=sockets),
            self._say,
            "requests that ran end in an error, new ones wait.",
            (0.2, 10.0),
        )
        self._parts.append((again, GRACE + self._patience))
        url = url_of(given.host, self._reserved.getsockname()[1])
        url = url.replace("http:", "https:") if "ssl-certfile" in given.passed else url
        self._until(lambda: _healthy(url), told=told)
        again.answered = True
        return url

    def _start_matcher(self, embedded: bool) -> tuple[str, str]:
        """Return URL and version of the matcher service."""
        given = self._given
        if given.maskd is not None:
            return given.maskd, version_at(given.maskd)
        default = "embedded" if embedded else "blip-itm"
        options = ["--matcher", given.matcher or default, "--workers", str(given.maskd_workers)]
        options += ["--device", given.maskd_device]
        self._say(f"Starting the matcher service with {given.matcher or default}.")
        matcher = OwnMatcher(options, for_matcher(), self._keeper, self._say)
        self._parts.append((matcher, MATCHER_GRACE + 5))
        self._until(lambda: matcher.ready, told="The matcher is still being loaded")
        return matcher.url, matcher.version

    def _until(self, done: Callable[[], bool], told: str = "") -> None:
        """Watch over the children until something is done."""
        began = last = time.monotonic()
        while not done():
            if self._signals.stop.wait(0.1):
                raise Stopped
            self._keeper.check()
            for part, _ in self._parts:
                part.check()
            if told and time.monotonic() - last > STILL:
                last = time.monotonic()
                self._say(f"{told} ({last - began:.0f} s).")


def _origins(passed: Passed) -> tuple[str, ...]:
    """Return the origins of pages whose scripts may ask, as vLLM's --allowed-origins gives them."""
    given = passed.value("allowed-origins")
    return tuple(json.loads(given)) if given else ("*",)


def _healthy(url: str) -> bool:
    try:
        return httpx.get(url + "/health", timeout=5, trust_env=False, verify=False).status_code == 200
    except httpx.HTTPError:
        return False
