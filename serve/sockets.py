"""Addresses that the server's parts listen on, and the processes that answer there."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

from lvlm_guard.errors import MissingExtraError


def bound(host: str, port: int) -> socket.socket:
    """Return a socket with its address, not yet listening: who connects is refused until something does.

    Args:
        host: address of this machine.
        port: 0 for any free one.

    Raises:
        OSError: the address is taken or not this machine's.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise OSError(error.errno, f"{os.strerror(error.errno or 0)}: {host}:{port}; give another --port") from error
    listening.set_inheritable(True)
    return listening


def url_of(host: str, port: int) -> str:
    """Return the address by which this machine reaches what listens at host and port."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def run(app: Any, listening: socket.socket, workers: int = 1, **config: Any) -> Sequence[int | None]:
    """Serve an app until SIGTERM or SIGINT.

    Args:
        app: the ASGI app; with several workers the "module:function" that makes it.
        listening: a bound socket.
        workers: processes.
        config: of `uvicorn.Config`.

    Returns:
        the exit statuses of the processes; () where it was this one.
    """
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
    made = uvicorn.Config(app, factory=isinstance(app, str), workers=workers, **quiet, **config)
    if workers == 1:
        uvicorn.Server(made).run(sockets=[listening])
        return ()
    several = Multiprocess(made, sockets=[listening])
    several.run()
    return [process.exitcode for process in several.processes]


def check_installed(what: str) -> None:
    """Raise `MissingExtraError` where something is missing that the front and the matcher service are made of."""
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"{what} needs {error.name}, which is not installed: "
            "pip install 'lvlm-guard[check]'; the extras serve and serve-cpu bring it too."
        ) from error
