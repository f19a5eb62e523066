"""Which network addresses a picture may be fetched from: the public internet's alone.

A client chooses the address of a picture, so the server must not be led to what only the server can reach: itself,
its neighbours, the cloud's metadata service. Refused is what Python does not call global, and every IPv6 form that
carries an IPv4 address inside (mapped, 6to4, Teredo, NAT64, ISATAP): what is behind it depends on gateways.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network

Address = IPv4Address | IPv6Address

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
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+")


def is_public(address: Address) -> bool:
    """Return whether an address is of the public internet, and of nothing else."""
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if any(address in network for network in _SPECIAL):
        return False
    if isinstance(address, IPv4Address):
        return True
    isatap = (int(address) >> 32) & 0xFFFFFFFF in _ISATAP
    return address in GLOBAL_IPV6 and address.scope_id is None and not isatap


def literal(host: str) -> Address | None:
    """Return the address that a host is, in any way of writing that some resolver takes; None: it is a name.

    Beside 127.0.0.1 and [::1] these are what `inet_aton` reads: 2130706433, 0x7f000001, 0177.0.0.1, 127.1.

    Raises:
        ValueError: it looks like an address, but no resolver should take it.
    """
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if ":" in bare:
        return IPv6Address(bare)
    bare = bare.removesuffix(".")
    numbers = bare.split(".")
    # the WHATWG rule: a host whose last label is a number is an address or nothing
    if not _NUMBER.fullmatch(numbers[-1]):
        return None
    if len(numbers) > 4 or not all(_NUMBER.fullmatch(number) for number in numbers):
        raise ValueError(f"{host!r} is neither a name nor an address")
    *leading, last = (_value(number) for number in numbers)
    if any(number > 255 for number in leading) or last >= 256 ** (4 - len(leading)):
        raise ValueError(f"{host!r} is no address: a part of it is too large")
    return IPv4Address(sum(number << (8 * (3 - i)) for i, number in enumerate(leading)) + last)


def _value(number: str) -> int:
    if number[:2].lower() == "0x":
        return int(number[2:] or "0", 16)
    if len(number) > 1 and number[0] == "0":
        return int(number, 8)
    return int(number)
