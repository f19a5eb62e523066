"""`lvlm-guard serve` as a process, with what it starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip


class Serve:
    """A server that was started.

    Args:
        folder: for its log.
        options: of `lvlm-guard serve`.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.log = folder / "serve.log"
        command = [sys.executable, "-m", "lvlm_guard", "serve", "--port", "0", "--json", *options]
        environment = os.environ | ENVIRONMENT
        environment.pop("VLLM_API_KEY", None)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment)
        assert self._process.stdout is not None
        said = b""
        while not said.endswith(b"\n}\n"):
            line = self._process.stdout.readline()
            assert line, self.log.read_text()[-6000:]
            said += line
        (row,) = json.loads(said)["rows"]
        self.url: str = row["url"]
        self.maskd: str = row["maskd"]
        self._process_tree = psutil.Process(row["pid"])

    def part(self, sign: str) -> psutil.Process:
        """Return the only process that it started with something in its command line."""
        (found,) = [one for one in self.parts() if sign in " ".join([one.name(), *one.cmdline()])]
        return found

    def parts(self) -> list[psutil.Process]:
        """Return all that it started and all that these started."""
        return self._process_tree.children(recursive=True)

    def ended(self, seconds: float) -> int:
        """Wait for its end; returns its exit status."""
        return self._process.wait(seconds)

    def stop(self) -> None:
        """End it, however it is."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def gone(parts: list[psutil.Process], seconds: float) -> bool:
    """Return whether processes are gone after some seconds at most."""
    end = time.monotonic() + seconds
    while left := [one for one in parts if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]:
        if time.monotonic() > end:
            print("left:", [one.cmdline() for one in left])
            return False
        time.sleep(0.1)
    return True
