"""Which network addresses a picture may be fetched from: the public internet's alone.

A client chooses the address of a picture, so the server must not be led to what only the server can reach: itself,
its neighbours, the cloud's metadata service. Everything with a special purpose is refused, after the registries
https://www.iana.org/assignments/iana-ipv4-special-registry and .../iana-ipv6-special-registry (read 2026), and so is
every IPv6 form that carries an IPv4 address inside (mapped, 6to4, Teredo, NAT64, ISATAP): what is behind it depends
on the network's gateways.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address

REFUSED: tuple[tuple[IPv4Network | IPv6Network, str], ...] = tuple(
    (IPv6Network(net) if ":" in net else IPv4Network(net), why)
    for net, why in (
        ("0.0.0.0/8", "this host"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared by a carrier, and some clouds' metadata"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "a cloud's own services"),  # Azure's, in the middle of public space
        ("169.254.0.0/16", "link-local, and the clouds' metadata"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved for protocols"),
        ("192.0.2.0/24", "documentation"),
        ("192.31.196.0/24", "reserved (AS112)"),
        ("192.52.193.0/24", "reserved (AMT)"),
        ("192.88.99.0/24", "6to4 relays"),
        ("192.168.0.0/16", "private"),
        ("192.175.48.0/24", "reserved (AS112)"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved, and broadcast"),
        ("::/128", "this host"),
        ("::1/128", "loopback"),
        ("::ffff:0:0/96", "an IPv4 address mapped to IPv6"),
        ("::/96", "an IPv4 address inside IPv6"),
        ("64:ff9b::/96", "an IPv4 address behind NAT64"),
        ("64:ff9b:1::/48", "an IPv4 address behind a local NAT64"),
        ("2001::/32", "an IPv4 address behind Teredo"),
        ("2001::/23", "reserved for protocols"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "an IPv4 address behind 6to4"),
        ("2620:4f:8000::/48", "reserved (AS112)"),
        ("3fff::/20", "documentation"),
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
)
"""Refused networks with what they are for; of two that hold an address the first names it."""

GLOBAL_IPV6 = IPv6Network("2000::/3")
"""The only part of IPv6 that is given out for the public internet."""

_ISATAP = {0x00005EFE, 0x02005EFE}  # upper half of the interface identifier (RFC 5214)
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+")


def why_refused(address: Address) -> str | None:
    """Return what an address is that nothing may be fetched from; None where it is public."""
    for network, why in REFUSED:
        if address.version == network.version and address in network:
            return why
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return "bound to one network of this machine"
        if address not in GLOBAL_IPV6:
            return "not given out for the public internet"
        if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
            return "an IPv4 address behind ISATAP"
    return None


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


def parsed(text: str) -> Address:
    """Return an address that a resolver gave; a scope ("%eth0") stays with it.

    Raises:
        ValueError: it is none.
    """
    return ip_address(text)


def _value(number: str) -> int:
    if number[:2].lower() == "0x":
        return int(number[2:] or "0", 16)
    if len(number) > 1 and number[0] == "0":
        return int(number, 8)
    return int(number)
