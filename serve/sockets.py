"""Addresses that the server's parts listen on."""

from __future__ import annotations

import os
import socket


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
