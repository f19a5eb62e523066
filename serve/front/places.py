"""Where a URL points, the hosts that may be asked, and the addresses that their names may lead to.

URLs are read more strictly than browsers do it, so that no two parsers can understand one address differently. A client
chooses the address of a picture, so the server must not be led to what only the server can reach: itself, its
neighbours, the cloud's metadata service.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network

from lvlm_guard.serve.errors import Refused, ServeError

MOST_URL = 2048

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>/[\x21-\x22\x24-\x5b\x5d-\x7e]*|\?[\x21-\x22\x24-\x5b\x5d-\x7e]*)?(?:#[\x21-\x7e]*)?",
    re.IGNORECASE,
)
_ENTRY = re.compile(r"(\*\.)?([a-z0-9-]+\.)*[a-z][a-z0-9-]*(:[0-9]{1,5})?")  # a last label of digits is an address
PORTS = {"http": 80, "https": 443}

_SPECIAL = tuple(
    map(
        ip_network,
        (
            "192.0.0.0/24", "168.63.129.16/32",  # a cloud's own services (Azure's), in the middle of public space
            "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.175.48.0/24",  # AS112, AMT, 6to4 relays
            "2001::/23", "2002::/16", "2620:4f:8000::/48", "3fff::/20",  # Teredo, 6to4, AS112, documentation
        ),
    )
)  # fmt: skip
"""Networks with a special purpose that some releases of Python call global."""

GLOBAL_IPV6 = IPv6Network("2000::/3")
"""The only part of IPv6 that is given out for the public internet."""

_ISATAP = {0x00005EFE, 0x02005EFE}  # upper half of the interface identifier (RFC 5214)


@dataclass(frozen=True)
class Place:
    """Where a URL points: scheme, host in lower case, port, and path with query."""

    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def of(cls, url: str) -> Place:
        """Read a URL, stricter than browsers (ASCII, no user, no backslash, no blank); raises `Refused`, 400."""
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
            if not _ENTRY.fullmatch(entry):
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


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return whether an address is of the public internet, and of nothing else.

    Refused is what Python does not call global, and every IPv6 form that carries an IPv4 address inside (mapped, 6to4,
    Teredo, NAT64, ISATAP): what is behind it depends on gateways.
    """
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if any(address in network for network in _SPECIAL):
        return False
    if isinstance(address, IPv4Address):
        return True
    isatap = (int(address) >> 32) & 0xFFFFFFFF in _ISATAP
    return address in GLOBAL_IPV6 and address.scope_id is None and not isatap
