"""Where a URL points, and the hosts that may be asked.

Read more strictly than browsers do it, so that no two parsers can understand one address differently.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lvlm_guard.serve.errors import Refused, ServeError
from lvlm_guard.serve.front.addresses import literal

MOST_URL = 2048

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>/[\x21-\x22\x24-\x5b\x5d-\x7e]*|\?[\x21-\x22\x24-\x5b\x5d-\x7e]*)?(?:#[\x21-\x7e]*)?",
    re.IGNORECASE,
)
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Place:
    """Where a URL points: scheme, host in lower case, port, and path with query."""

    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def of(cls, url: str) -> Place:
        """Read a URL; stricter than browsers: ASCII, no user, no backslash, no blank.

        Raises:
            Refused: 400, it is none.
        """
        found = _URL.fullmatch(url) if len(url) <= MOST_URL else None
        port = int(found["port"] or PORTS[found["scheme"].lower()]) if found else 0
        if found is None or not 0 < port < 65536:
            raise Refused(
                400,
                f"{url[:80]!r} is no address that a picture is fetched from: write http://HOST/PATH or https://..., "
                f"ASCII alone, without user and password, {MOST_URL} characters at most; or send the picture itself as "
                "data:image/png;base64,...",
            )
        target = found["target"] or "/"
        target = target if target.startswith("/") else "/" + target
        return cls(found["scheme"].lower(), found["host"].lower().removesuffix("."), port, target)

    def joined(self, location: str) -> Place:
        """Return where a redirect leads: a whole URL, or a path at the same host."""
        if location.startswith("//"):
            return Place.of(f"{self.scheme}:{location}")
        if location.startswith("/"):
            return Place.of(f"{self.scheme}://{self.host}:{self.port}{location}")
        return Place.of(location)


@dataclass(frozen=True)
class Hosts:
    """The hosts that pictures may be fetched from.

    Args:
        allowed: each `HOST`, `HOST:PORT` or `*.DOMAIN` (hosts below it, not itself); without a port the scheme's own.

    Raises:
        ServeError: an entry is none of these.
    """

    allowed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for entry in self.allowed:
            if not re.fullmatch(r"(\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)*(:[0-9]{1,5})?", entry) or is_address(
                entry.partition(":")[0]
            ):
                raise ServeError(
                    f"{entry!r} is no host that pictures may come from: give names in lower case, images.example, "
                    "images.example:8443 or *.images.example; no addresses, no URLs."
                )

    def take(self, place: Place) -> bool:
        """Return whether a place may be asked."""
        for entry in self.allowed:
            name, _, port = entry.partition(":")
            if place.port != int(port or PORTS[place.scheme]):
                continue
            if place.host == name or (name.startswith("*.") and place.host.endswith(name[1:])):
                return True
        return False


def is_address(host: str) -> bool:
    """Return whether a host is written as an address, well or badly."""
    try:
        return literal(host) is not None
    except ValueError:
        return True
