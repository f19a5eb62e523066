"""The parts of one server, in the order in which they are started, and the watch over them."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import httpx

from lvlm_guard.embedded.catalog import CLASSES
from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.front.names import Names
from lvlm_guard.serve.front.places import Hosts
from lvlm_guard.serve.front.settings import KEY, FrontSettings, limits_of
from lvlm_guard.serve.front.template import special_tokens
from lvlm_guard.serve.launch import questions, refused
from lvlm_guard.serve.launch.canary import TOP, Canary
from lvlm_guard.serve.launch.checkpoint import Checkpoint
from lvlm_guard.serve.launch.child import Child, Keeper
from lvlm_guard.serve.launch.command import (
    Machine,
    adapters,
    command,
    environment,
    for_front,
    for_matcher,
    front_command,
    patience_of,
)
from lvlm_guard.serve.launch.guards import guards_of
from lvlm_guard.serve.launch.installed import AUDIO, Installed, check_release, installed
from lvlm_guard.serve.launch.matcher import OwnMatcher, version_at
from lvlm_guard.serve.launch.passed import Passed
from lvlm_guard.serve.launch.respawned import Respawned
from lvlm_guard.serve.launch.settings import ServeSettings
from lvlm_guard.serve.launch.signals import Signals
from lvlm_guard.serve.maskd.run import GRACE as MATCHER_GRACE
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
        guards: that are served.
        maskd: URL of the matcher service; None where no guard needs it.
        matcher: version of its matcher.
        pid: of the process that watches; a signal to it stops everything.
    """

    url: str
    names: tuple[str, ...]
    guards: tuple[str, ...]
    maskd: str | None
    matcher: str | None
    pid: int


class Stopped(Exception):
    """A signal came, and all is stopped."""


class Server:
    """What `serve` starts, in the order in which it is started.

    Args:
        settings: the user's.
        say: tells the operator.
        stack: closes what was opened.
        keeper: ends the children should we be killed.
        signals: that ask for the end.

    Raises:
        GuardError: the server can't be started so.
    """

    def __init__(self, settings: ServeSettings, say: Say, stack: ExitStack, keeper: Keeper, signals: Signals) -> None:
        self._say, self._keeper, self._signals = say, keeper, signals
        self._given = settings
        self._vllm: Installed = installed()
        self._checkpoint = Checkpoint.of(settings.model, settings.passed)
        self._guards = guards_of(settings.guards, self._checkpoint)
        self._twin = self._checkpoint.twin if set(self._guards) - {"vote"} else None
        refused.check(settings.passed, self._guards, twin=self._twin is not None)
        if self._twin:
            check_release(self._vllm)
        most = settings.passed.value("max-logprobs", str(TOP))
        if most.isdigit() and int(most) < TOP:
            raise ServeError(f"--max-logprobs {most} hides what the check of the guards looks at: give {TOP} or more.")
        plain = settings.names or (settings.model,)
        self._names = Names((*plain, *adapters(settings.passed)), self._guards)
        self._machine = _machine(self._vllm)
        self._no_question = self._checkpoint.no_question()
        self._special_tokens = special_tokens(self._checkpoint.tokenizer, self._template())
        Hosts(settings.image_hosts)
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lvlm-guard-serve-")))
        keeper.remove_at_end(self._folder)
        self._objects()
        self._reserved = stack.enter_context(bound(settings.host, settings.port))
        self._port = self._reserved.getsockname()[1]
        self._command = command(
            self._checkpoint,
            self._guards,
            self._machine,
            names=plain,
            most_pictures=settings.most_pictures,
            uds=str(self._folder / "vllm.sock"),
            eager=settings.eager,
            twin=self._twin,
        )
        self._limits = limits_of(settings.limits)
        self._patience = patience_of(settings.passed)
        self._matcher: OwnMatcher | None = None
        self._front: Respawned | None = None
        self._engine: Child | None = None

    def _objects(self) -> None:
        """Settle what free text may name, for all processes alike."""
        if self._given.objects is not None:
            os.environ[OBJECTS] = str(Path(self._given.objects).resolve())
        elif self._checkpoint.embedded and not os.environ.get(OBJECTS):
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
            if self._front is not None:  # first: what runs gets to end while all the rest still works
                self._front.stop(GRACE + self._patience, self._signals.hurry)
            if self._engine is not None:
                self._engine.stop(GRACE, self._signals.hurry)
            if self._matcher is not None:
                self._matcher.stop(MATCHER_GRACE + 5, self._signals.hurry)

    def _open(self, ready: Callable[[Ready], None]) -> None:
        given = self._given
        if self._twin:
            self._say(
                "A twin engine runs every step on two branches and keeps two KV caches, for requests to the plain name "
                "too: half the tokens fit into the same memory. For mostly plain traffic serve --guards vote, which "
                "leaves the model as it is, or run a second, ordinary vLLM and let a router choose by model name."
            )
        key = os.environ.get(KEY, "")
        if not key and given.host not in ("127.0.0.1", "localhost", "::1"):
            self._say(f"There is no API key: whoever reaches {given.host} is answered. Set {KEY} to ask for one.")
        maskd, version = self._start_matcher()
        token, opened = secrets.token_urlsafe(24), self._folder / "open"
        inner = secrets.token_urlsafe(24)
        front = FrontSettings(
            names=self._names.plain,
            guards=self._guards,
            upstream=self._command[self._command.index("--uds") + 1],
            upstream_key=inner,
            maskd_url=maskd,
            origins=_origins(given.passed),
            image_hosts=given.image_hosts,
            most_pictures=given.most_pictures,
            drop=self._no_question,
            opened=str(opened),
            token=token,
            special_tokens=self._special_tokens,
            **self._limits,
        )
        self._say(f"Starting vLLM {self._vllm.version} with {given.model}; large models take minutes.")
        counts, counted = self._folder / "counts", self._folder / "counted"
        counts.mkdir()
        counted.mkdir()
        made = environment(inner, self._checkpoint, self._machine, counts)
        self._engine = Child(self._command, made, self._keeper)
        words = front_command(given.passed, self._reserved.fileno(), given.front_workers)
        started, sockets = for_front(front, counted), [self._reserved.fileno()]
        self._front = Respawned(
            "The front",
            lambda: Child(words, started, self._keeper, sockets=sockets),
            self._say,
            "requests that ran end in an error, new ones wait.",
            (0.2, 10.0),
        )
        url = url_of(given.host, self._port)
        if "ssl-certfile" in given.passed:
            url = url.replace("http:", "https:")
        self._until(lambda: _healthy(url), told="vLLM is still starting")
        self._front.answered = True
        canary = Canary(url, self._names.plain[0], token, key)
        self._ask(canary)
        opened.touch()
        ready(Ready(url, self._names.all, self._guards, maskd, version, os.getpid()))

    def _template(self) -> str | None:
        """Return the chat template that the user gave vLLM, as a file or as it is; None: the model's own."""
        given = self._given.passed.value("chat-template")
        if not given:
            return None
        return Path(given).read_text(encoding="utf-8") if "{" not in given else given

    def _start_matcher(self) -> tuple[str | None, str | None]:
        """Return URL and version of the matcher service."""
        given = self._given
        if not {"agla", "vote"} & set(self._guards):
            return None, None
        if given.maskd is not None:
            return given.maskd, version_at(given.maskd)
        default = "embedded" if self._checkpoint.embedded else "blip-itm"
        options = ["--matcher", given.matcher or default, "--workers", str(given.maskd_workers)]
        options += ["--device", given.maskd_device]
        self._say(f"Starting the matcher service with {given.matcher or default}.")
        matcher = self._matcher = OwnMatcher(options, for_matcher(), self._keeper, self._say)
        self._until(lambda: matcher.ready, told="The matcher is still being loaded")
        return matcher.url, matcher.version

    def _ask(self, canary: Canary) -> None:
        """Ask the canary's questions, on a thread: a signal or a death must not wait for an answer."""
        failed: list[BaseException] = []

        def ask() -> None:
            try:
                questions.check(canary, self._guards, lambda: self._checkpoint.tokenizer)
            except BaseException as error:  # told by the main thread
                failed.append(error)
            finally:
                canary.close()

        asking = Thread(target=ask, daemon=True)
        asking.start()
        self._until(lambda: not asking.is_alive(), told="The guards are still being checked")
        if failed:
            raise failed[0]

    def _until(self, done: Callable[[], bool], told: str = "") -> None:
        """Watch over the children until something is done."""
        began = last = time.monotonic()
        while not done():
            if self._signals.stop.wait(0.1):
                raise Stopped
            self._keeper.check()
            if self._engine is not None and (code := self._engine.ended()) is not None:
                raise ServeError(self._died(self._engine, code))
            if self._front is not None:
                self._front.check()
            if self._matcher is not None:
                self._matcher.check()
            if told and time.monotonic() - last > STILL:
                last = time.monotonic()
                self._say(f"{told} ({last - began:.0f} s).")

    def _died(self, engine: Child, code: int) -> str:
        reason = engine.reason()
        if "torchaudio" in reason or "torchcodec" in reason or engine.wrote("libtorchaudio"):
            reason += f" The sound and video packages that come with vLLM break its import here: {AUDIO}."
        how = f"by signal {-code}" if code < 0 else f"with exit status {code}"
        return f"vLLM ended {how}, so everything is stopped. {reason or 'It gave no reason.'} Its log is above."


def _machine(vllm: Installed) -> Machine:
    import torch

    return Machine(vllm.cpu, not vllm.cpu and torch.cuda.is_available() and torch.version.cuda is not None)


def _origins(passed: Passed) -> tuple[str, ...]:
    """Return the origins of pages whose scripts may ask, as vLLM's --allowed-origins gives them."""
    given = passed.value("allowed-origins")
    return tuple(json.loads(given)) if given else ("*",)


def _healthy(url: str) -> bool:
    try:
        return httpx.get(url + "/health", timeout=5, trust_env=False, verify=False).status_code == 200
    except httpx.HTTPError:
        return False
