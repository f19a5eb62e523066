"""The matcher service, started for a test: as a process, or in a thread with a matcher that waits at a gate."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import httpx
import uvicorn
from PIL import Image
from torch import Tensor

from lvlm_guard.embedded.world import scenes
from lvlm_guard.matching import Match, Matcher, load_matcher
from lvlm_guard.serve.maskd.app import create_app
from lvlm_guard.serve.settings import Limits


@lru_cache(maxsize=4)
def _scenes(count: int) -> tuple[Image.Image, ...]:
    return tuple(Image.fromarray(array) for array in scenes("test", count).image)


def scene(number: int) -> Image.Image:
    """Return one of the first 64 scenes."""
    return _scenes(64)[number]


@lru_cache(maxsize=256)
def png(number: int) -> bytes:
    """Return a scene as a PNG file."""
    held = io.BytesIO()
    scene(number).save(held, "PNG")
    return held.getvalue()


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


class Process:
    """The service as its users start it."""

    def __init__(self, log: Path, *options: str, port: int = 0) -> None:
        self._log = log.open("ab")
        self.log = log
        command = [sys.executable, "-m", "lvlm_guard.serve.maskd", "--json", "--port", str(port), *options]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert self._process.stdout is not None
        said = b""
        while not said.endswith(b"\n}\n"):
            line = self._process.stdout.readline()
            assert line, log.read_text()
            said += line
        (row,) = json.loads(said)["rows"]
        self.url: str = row["url"]
        self.version: str = row["matcher"]
        self.pid = self._process.pid

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """Ask it to stop, as a supervisor does; returns its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(timeout=60)
        self._log.close()
        return code


class Gated(Matcher):
    """The embedded matcher behind a gate; notes which texts came in one batch."""

    def __init__(self) -> None:
        self._inner = load_matcher("embedded")
        self.side = self._inner.side
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[str]] = []

    @property
    def version(self) -> str:
        return self._inner.version

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Match]:
        self.batches.append(list(texts))
        assert self.gate.wait(60)
        return self._inner(images, texts)

    def support(self, image: Image.Image, claims: Sequence[str]) -> Tensor:
        return self._inner.support(image, claims)


@contextmanager
def served(matcher: Matcher, limits: Limits | None = None) -> Iterator[str]:
    """Serve a matcher from a thread.

    Yields:
        the service's URL.
    """
    bound = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        create_app(lambda: matcher, limits), log_level="error", access_log=False, timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    try:
        until(lambda: server.started)
        yield url
    finally:
        server.should_exit = True
        thread.join(30)
        bound.close()
        assert not thread.is_alive()


def until(true: object, seconds: float = 30) -> None:
    """Wait until a function gives something true."""
    assert callable(true)
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def metric(url: str, name: str) -> float:
    """Return the sum of a metric's values at a service, over all labels."""
    lines = httpx.get(url + "/metrics", trust_env=False).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)
