"""`python -m lvlm_guard.serve.measure`: start the embedded model's server and an ordinary vLLM beside it, and measure.

    python -m lvlm_guard.serve.measure --json > docs/results/serve.json
    python -m lvlm_guard.serve.measure --guards vote --json        without the twin
    python -m lvlm_guard.serve.measure --soak 600 --json           one server alone, its memory watched

Options other than --guards are those of `lvlm-guard bench`. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from threading import Event
from typing import Any

import httpx

from lvlm_guard import embedded
from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.launch.child import Child, Keeper
from lvlm_guard.serve.sockets import bound

STARTS = 300.0
"""Seconds that a server gets to start."""

_ORDINARY = ("--dtype", "float32", "--enforce-eager", "--generation-config", "vllm", "--kv-cache-memory-bytes")
_CACHE = 128 << 20  # half of the twin's, which keeps two: as many tokens in each
# vLLM keeps the pictures of 4 GiB, which new ones fill for an hour; memory that settles shows that nothing leaks
_SOAKED = ("--mm-processor-cache-gb", "0.0625")
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCH_COMPILE_DISABLE": "1", "VLLM_LOGGING_LEVEL": "WARNING",
}  # fmt: skip


def guarded(keeper: Keeper, environment: dict[str, str], options: Sequence[str]) -> tuple[Child, dict[str, Any]]:
    """Start `lvlm-guard serve` with some options; returns it and what it says when it is open.

    Raises:
        ServeError: it does not open.
    """
    said: list[str] = []
    command = [sys.executable, "-m", "lvlm_guard", "serve", "--port", "0", "--json", "--disable-uvicorn-access-log"]
    child = Child([*command, *options], environment, keeper, said.append)
    _until(child, lambda: bool(said) and said[-1].startswith("}"))
    row: dict[str, Any] = json.loads("".join(said))["rows"][0]
    return child, row


def ordinary(keeper: Keeper, environment: dict[str, str]) -> tuple[Child, str]:
    """Start vLLM itself with the same model; returns it and its URL.

    Raises:
        ServeError: it does not answer.
    """
    with bound("127.0.0.1", 0) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(embedded.MODEL)]
    command += ["--served-model-name", "embedded", "--host", "127.0.0.1", "--port", port, *_ORDINARY, str(_CACHE)]
    url = f"http://127.0.0.1:{port}"
    child = Child([*command, "--disable-uvicorn-access-log"], environment, keeper)
    _until(child, lambda: _healthy(url))
    return child, url


def main(arguments: list[str]) -> int:
    """Measure; returns the exit status of `lvlm-guard bench`.

    Raises:
        ServeError: a server does not start.
    """
    parser = argparse.ArgumentParser(prog="python -m lvlm_guard.serve.measure", allow_abbrev=False)
    parser.add_argument("--guards", default="", help="of `lvlm-guard serve`")
    own, passed = parser.parse_known_args(arguments)
    environment = {**os.environ, **_ENVIRONMENT}
    keeper, children = Keeper(), []
    try:
        options = ["--guards", own.guards] if own.guards else []
        server, said = guarded(keeper, environment, [*options, *(_SOAKED if "--soak" in passed else ())])
        children.append(server)
        command = [sys.executable, "-m", "lvlm_guard", "bench", "--server", said["url"]]
        if "--soak" in passed:
            command += ["--pid", str(said["pid"])]
        else:
            beside, url = ordinary(keeper, environment)
            children.append(beside)
            command += ["--plain-server", url]
        return _ran([*command, *passed], environment)
    finally:
        for child in reversed(children):
            child.stop(60, Event())
        keeper.close()


def _ran(command: list[str], environment: dict[str, str]) -> int:
    """Run to the end; Ctrl-C is the command's, which ends with what it has."""
    with subprocess.Popen(command, env=environment) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue


def _until(child: Child, ready: Any) -> None:
    end = time.monotonic() + STARTS
    while not ready():
        if child.ended() is not None or time.monotonic() > end:
            raise ServeError(f"A server did not start. {child.reason() or 'What it wrote is above.'}")
        time.sleep(0.2)


def _healthy(url: str) -> bool:
    try:
        return httpx.get(url + "/health", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
