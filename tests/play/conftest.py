"""A playground as a user starts it, in a process of its own, and Debian's Chromium before it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOW = "no Chromium on this machine: apt-get install -y chromium, then make test-play"

# sees each connection that the server's process opens, whoever opens it
WATCHED = """
import os, sys
paths = {{"socket.connect": {log!r}, "open": {written!r}}}
logs = {{event: os.open(path, os.O_WRONLY | os.O_APPEND) for event, path in paths.items()}}
def seen(event, arguments):
    if event == "socket.connect":
        os.write(logs[event], (repr(arguments[1]) + "\\n").encode())
    elif event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR):
        os.write(logs[event], (str(arguments[0]) + "\\n").encode())
sys.addaudithook(seen)
"""


@dataclass
class Playground:
    """A running playground.

    Args:
        url: of its page.
        home: where it was started; also its home and its folder for temporary files.
        connected: a file with every address that its process connected to.
        written: a file with every path that its process opened for writing.
    """

    url: str
    home: Path
    connected: Path
    written: Path

    def files(self) -> list[Path]:
        """Return the files that lie in its folders."""
        return [path for path in self.home.rglob("*") if path.is_file()]


@contextmanager
def opened(folder: Path, *options: str) -> Iterator[Playground]:
    """Start a playground with these options, in empty folders, until the block ends."""
    home, beside = folder / "home", folder / "beside"
    log, written = beside / "connected", beside / "written"
    for path in (home, beside):
        path.mkdir()
    for path in (log, written):
        path.touch()
    (beside / "sitecustomize.py").write_text(WATCHED.format(log=str(log), written=str(written)), encoding="utf-8")
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(beside), str(ROOT)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(home),
        "TMPDIR": str(home),
        "XDG_CACHE_HOME": str(home),
        "MPLCONFIGDIR": str(beside),  # gradio imports matplotlib, which writes a list of this machine's fonts
    }
    command = [sys.executable, "-m", "lvlm_guard", "play", "--port", "0", "--json", *options]
    with subprocess.Popen(command, cwd=home, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Playground(_address(process), home, log, written)
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def open_playground() -> Callable[..., AbstractContextManager[Playground]]:
    """What starts a playground with options."""
    pytest.importorskip("gradio", reason="make test-play has it")
    return opened


@pytest.fixture(scope="session")
def playground(tmp_path_factory: pytest.TempPathFactory, open_playground: Any) -> Iterator[Playground]:
    """A playground with the embedded model."""
    with open_playground(tmp_path_factory.mktemp("playground")) as started:
        yield started


def _address(process: Any) -> str:
    lines = ""
    for line in process.stdout:
        lines += line
        if line.rstrip() == "}":
            return str(json.loads(lines)["rows"][0]["url"])
    raise RuntimeError(f"the playground ended before it was open: {process.wait()}")


@pytest.fixture(scope="module")  # its event loop stands in the way of other modules' tests
def browser() -> Iterator[Any]:
    """Chromium."""
    sync = pytest.importorskip("playwright.sync_api", reason="make test-play has it")
    if CHROMIUM is None:
        print(HOW, file=sys.stderr)
        pytest.skip(HOW)
    with sync.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield opened
        opened.close()
