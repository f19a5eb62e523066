"""Processes that `serve` starts: none outlives it, whoever is killed, and the matcher service comes back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import httpx
import pytest
from front_server import serving
from starlette.applications import Starlette

from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.launch.child import Child, Keeper
from lvlm_guard.serve.launch.command import for_matcher
from lvlm_guard.serve.launch.respawned import OwnMatcher, version_at

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
program = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
inner = subprocess.Popen([sys.executable, "-c", program])
print("pids", os.getpid(), inner.pid, flush=True)
time.sleep(600)
"""
"""A process that heeds no request to end and has started another one, as vLLM starts its engine."""

SERVE = f"""
import sys, time
from pathlib import Path
from lvlm_guard.serve.launch.child import Child, Keeper
keeper = Keeper()
keeper.remove_at_end(Path(sys.argv[1]))
child = Child([sys.executable, "-c", {STUBBORN!r}], {{}}, keeper, lambda line: print(line, end="", flush=True))
time.sleep(600)
"""
"""What `serve` does."""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # killed, and waiting for its parent to read the status


def until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    made = Keeper()
    yield made
    made.close()


def stubborn(keeper: Keeper) -> tuple[Child, list[int]]:
    """Start a process that does not heed SIGTERM; returns it with its pid and the pid of what it started."""
    said: list[str] = []
    child = Child([sys.executable, "-c", STUBBORN], os.environ, keeper, said.append)
    until(lambda: said)
    return child, [int(pid) for pid in said[0].split()[1:]]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_starter_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "its own"
    folder.mkdir()
    (folder / "file").touch()
    starter = subprocess.Popen([sys.executable, "-c", SERVE, folder], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    pids = [int(pid) for pid in starter.stdout.readline().split()[1:]]
    assert len(pids) == 2
    assert all(map(alive, pids))
    starter.kill()
    starter.wait()
    until(lambda: not any(map(alive, pids)), 20)
    until(lambda: not folder.exists(), 20)
    assert tmp_path.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_starter_whose_keeper_was_killed_gets_another_that_knows_its_children(keeper: Keeper) -> None:
    child, pids = stubborn(keeper)
    keeper._process.kill()
    keeper._process.wait()
    keeper.check()
    assert all(map(alive, pids))
    keeper.close()  # as if we were gone
    until(lambda: not any(map(alive, pids)), 20)
    child.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_does_not_heed_a_request_to_end_is_killed_with_all_that_it_started(keeper: Keeper) -> None:
    child, pids = stubborn(keeper)
    began = time.monotonic()
    child.stop(0.3, Event())
    assert 0.3 <= time.monotonic() - began < 10
    assert not any(map(alive, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_second_signal_ends_the_wait(keeper: Keeper) -> None:
    child, pids = stubborn(keeper)
    hurry = Event()
    hurry.set()
    began = time.monotonic()
    child.stop(600, hurry)
    assert time.monotonic() - began < 10
    assert not any(map(alive, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_dead_process_started_is_killed_too(keeper: Keeper) -> None:
    child, (pid, inner) = stubborn(keeper)
    os.kill(pid, signal.SIGKILL)
    until(lambda: child.ended() is not None)
    assert child.ended() == -signal.SIGKILL
    assert alive(inner)
    child.kill()
    assert not alive(inner)


def test_the_reason_of_a_death_is_the_last_error_that_says_something(
    keeper: Keeper, capsys: pytest.CaptureFixture[str]
) -> None:
    program = """
import sys
print("INFO all is well", flush=True)
print("(Core pid=7) lvlm_guard.serve.errors.ServeError: A twin engine can't be started so: LoRA.", file=sys.stderr)
print("RuntimeError: Engine core initialization failed. See root cause above.", file=sys.stderr)
sys.exit(3)
"""
    child = Child([sys.executable, "-c", program], os.environ, keeper)
    until(lambda: child.ended() is not None)
    assert child.ended() == 3
    assert child.reason() == "ServeError: A twin engine can't be started so: LoRA."
    assert "all is well" in capsys.readouterr().err
    assert child.wrote("all is well")
    child.kill()


@pytest.mark.slow
def test_a_matcher_service_that_is_killed_comes_back_at_its_address(keeper: Keeper) -> None:
    said: list[str] = []
    matcher = OwnMatcher(["--matcher", "embedded"], for_matcher() | {"OMP_NUM_THREADS": "1"}, keeper, said.append)
    try:
        until(lambda: matcher.check() or matcher.ready)
        url, version = matcher.url, matcher.version
        assert version_at(url) == version
        os.kill(matcher.child.pid, signal.SIGKILL)
        until(lambda: matcher.check() or said)
        assert "died" in said[0]
        assert "503" in said[0]
        with pytest.raises(ServeError, match="can't be reached"):
            version_at(url)
        until(lambda: matcher.check() or said[-1].endswith(f"back at {url}."))
        assert version_at(url) == version
    finally:
        matcher.stop(20, Event())
    with contextlib.suppress(httpx.HTTPError):
        assert httpx.get(url + "/health", trust_env=False).status_code != 200


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="stops a process by a signal")
def test_a_matcher_service_that_hangs_is_killed_and_comes_back(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvlm_guard.serve.launch.respawned.EVERY", 0.5)
    said: list[str] = []
    matcher = OwnMatcher(["--matcher", "embedded"], for_matcher() | {"OMP_NUM_THREADS": "1"}, keeper, said.append)
    try:
        until(lambda: matcher.check() or matcher.ready)
        pid = matcher.child.pid
        os.kill(pid, signal.SIGSTOP)
        until(lambda: matcher.check() or any("hangs" in line for line in said))
        assert not alive(pid)
        until(lambda: matcher.check() or said[-1].endswith(f"back at {matcher.url}."))
        assert version_at(matcher.url) == matcher.version
    finally:
        matcher.stop(20, Event())


def test_a_matcher_service_that_never_answers_ends_the_start(keeper: Keeper) -> None:
    matcher = OwnMatcher(["--matcher", "no-such-matcher"], for_matcher(), keeper, lambda text: None)
    with pytest.raises(ServeError, match="could not start"):
        until(lambda: matcher.check())


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense", "http://[::1"])
def test_another_servers_matcher_must_answer(url: str) -> None:
    with pytest.raises(ServeError, match="--maskd"):
        version_at(url)


def test_what_answers_but_is_no_matcher_is_refused() -> None:
    with serving(Starlette()) as url, pytest.raises(ServeError, match="answers 404"):
        version_at(url)
