"""`python -m lvlm_guard.serve.front`: the front's processes, on a socket that whoever started it has bound."""

from __future__ import annotations

import argparse
import contextlib
import socket
from collections.abc import Sequence
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

APP = "lvlm_guard.serve.front.checking:create"


def main(words: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; requests that run by then get to end.

    Args:
        words: of the command line; the front's settings and the key are in the environment.
    """
    parser = argparse.ArgumentParser(prog="python -m lvlm_guard.serve.front")
    parser.add_argument("--fd", type=int, required=True, help="number of the bound socket")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--patience", type=int, default=30, help="seconds for running requests to end")
    parser.add_argument("--ssl-certfile")
    parser.add_argument("--ssl-keyfile")
    parser.add_argument("--ssl-ca-certs")
    parser.add_argument("--root-path", default="")
    given = parser.parse_args(words)
    _open_files()
    config = uvicorn.Config(
        APP,
        factory=True,
        workers=given.workers,
        root_path=given.root_path,
        timeout_graceful_shutdown=given.patience,
        log_level="warning",
        access_log=False,
        server_header=False,
        ssl_certfile=given.ssl_certfile,
        ssl_keyfile=given.ssl_keyfile,
        ssl_ca_certs=given.ssl_ca_certs,
    )
    listening = socket.socket(fileno=given.fd)
    runner: Any = uvicorn.Server(config) if given.workers == 1 else Multiprocess(config, sockets=[listening])
    if given.workers == 1:
        runner.run(sockets=[listening])
    else:
        runner.run()


def _open_files() -> None:
    """Let this process hold as many connections as the system grants it."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    main()
