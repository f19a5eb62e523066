"""`python -m lvlm_guard.serve.front OPTIONS`: the front's processes, on a socket that whoever started it has bound.

OPTIONS is a JSON object: `fd`, the number of the socket, and what `uvicorn.Config` takes. The front's settings and the
key are in the environment.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys

from lvlm_guard.serve.sockets import run


def main(options: str) -> None:
    """Serve until SIGTERM or SIGINT; requests that run by then get to end."""
    given = json.loads(options)
    with contextlib.suppress(ImportError, OSError, ValueError):  # as many connections as the system grants
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    run("lvlm_guard.serve.front.checking:create", socket.socket(fileno=given.pop("fd")), **given)


if __name__ == "__main__":
    main(sys.argv[1])
