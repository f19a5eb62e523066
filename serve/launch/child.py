"""Processes that `serve` starts, each with all that it starts in turn, and none outlives it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import IO, cast

from lvlm_guard.serve.launch import keeper

# "ValueError: ...", perhaps behind vLLM's "(EngineCore pid=7) ERROR 11-25 14:19:56 [core.py:1402] "
_REASON = re.compile(r"^(?:\([^)]*\) )?(?:ERROR [^\]]*\] )?(?:\w+\.)*([A-Z]\w*(?:Error|Exception)): (\S.*)")
_VAGUE = re.compile(r"Engine core initialization failed|EngineDeadError|EngineCore encountered an issue")
_LAST = 400  # lines of output that are kept
_LEFT = 5.0  # seconds for a killed group to be gone


class Keeper:
    """Kills the groups of children when this process is gone; see `keeper.py`."""

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._folders: list[Path] = []
        self._start()

    def _start(self) -> None:
        # -I: whatever is in the current folder or the environment, it imports the standard library alone
        command = [sys.executable, "-I", str(Path(keeper.__file__))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
        )
        self._pipe = cast(IO[str], self._process.stdin)
        for group in self._groups:
            self._say(f"+{group}")
        for folder in self._folders:
            self._say(str(folder))

    def remove_at_end(self, folder: Path) -> None:
        """Remove a folder, given by its whole path, should it still be there when we are gone."""
        self._folders.append(folder)
        self._say(str(folder))

    def add(self, group: int) -> None:
        """Watch over a group."""
        self._groups.add(group)
        self._say(f"+{group}")

    def remove(self, group: int) -> None:
        """Forget a group that is gone."""
        self._groups.discard(group)
        self._say(f"-{group}")

    def check(self) -> None:
        """Start it again where something killed it."""
        if self._process.poll() is not None:
            self._start()

    def close(self) -> None:
        """Let it end."""
        with contextlib.suppress(OSError):
            self._pipe.close()
        self._process.wait()

    def _say(self, line: str) -> None:
        # it was killed (`check` starts another one), or we are at the end
        with contextlib.suppress(OSError, ValueError):
            self._pipe.write(line + "\n")
            self._pipe.flush()


class Child:
    """A process in a group of its own.

    What it writes to standard error, and to standard output unless `answer` takes that, goes to our standard error.

    Args:
        command: its command line.
        environment: its environment.
        keeper: that ends it should we be killed.
        answer: called with each line of its standard output, on a thread.
        sockets: numbers of open ones that it gets.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        keeper: Keeper,
        answer: Callable[[str], None] | None = None,
        sockets: Sequence[int] = (),
    ) -> None:
        self._keeper = keeper
        self._lines: deque[str] = deque(maxlen=_LAST)
        self._process = subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if answer is None else subprocess.PIPE,
            start_new_session=True,
            pass_fds=sockets,
        )
        keeper.add(self.pid)
        self._readers = [self._reader(self._process.stdout, answer or self._tell)]
        if self._process.stderr is not None:
            self._readers.append(self._reader(self._process.stderr, self._tell))

    @property
    def pid(self) -> int:
        """Its process id, and its group's."""
        return self._process.pid

    def ended(self) -> int | None:
        """Return its exit status, None while it runs."""
        return self._process.poll()

    def reason(self) -> str:
        """Return the last error that it wrote, "" for none."""
        for reader in self._readers:
            reader.join(1)  # what it wrote last may still be on its way
        found = [match for line in self._lines if (match := _REASON.search(line)) and not _VAGUE.search(line)]
        return f"{found[-1][1]}: {found[-1][2]}" if found else ""

    def wrote(self, text: str) -> bool:
        """Return whether a text is in what it wrote lately."""
        return any(text in line for line in self._lines)

    def stop(self, seconds: float, hurry: Event) -> None:
        """Ask it to end, and end it and all that it started where it does not.

        Args:
            seconds: it gets.
            hurry: ends the wait.
        """
        if self.ended() is None:
            self._process.send_signal(signal.SIGTERM)
            end = time.monotonic() + seconds
            while self.ended() is None and time.monotonic() < end and not hurry.is_set():
                time.sleep(0.05)
        self.kill()

    def kill(self) -> None:
        """End it and all that it started, now."""
        end = time.monotonic() + _LEFT
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < end:
                os.killpg(self.pid, signal.SIGKILL)
                self._process.poll()
                time.sleep(0.02)
        self._process.wait()
        self._keeper.remove(self.pid)
        for reader in self._readers:
            reader.join(1)

    def _reader(self, stream: IO[bytes] | None, take: Callable[[str], None]) -> Thread:
        def read() -> None:
            for line in stream or ():
                take(line.decode("utf-8", "replace"))

        thread = Thread(target=read, daemon=True)
        thread.start()
        return thread

    def _tell(self, line: str) -> None:
        self._lines.append(line)
        with contextlib.suppress(OSError, ValueError):  # nobody reads our errors any more; theirs must still be read
            sys.stderr.write(line)
            sys.stderr.flush()
