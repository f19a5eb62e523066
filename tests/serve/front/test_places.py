"""Places that pictures may come from: every address that is no public one is refused, however it is written."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_guard.serve.errors import Refused, ServeError
from lvlm_guard.serve.front.places import Hosts, Place, is_public

PRIVATE = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "127.0.0.1",
    "127.255.255.254", "168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192",
    "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1",
    "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1",
    "::ffff:8.8.8.8", "64:ff9b::7f00:1", "64:ff9b:1::a00:1", "100::1", "2001:0:7f00:1::1", "2001:20::1",
    "2001:db8::1", "2002:7f00:1::1", "2002:a9fe:a9fe::", "2600::5efe:7f00:1", "2600::200:5efe:a00:1", "3fff::1",
    "4000::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "2600::1%eth0", "fec0::1",
    "ff02::1",
]  # fmt: skip


@pytest.mark.parametrize("text", PRIVATE)
def test_an_address_with_a_special_purpose_is_refused(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize(
    "text", ["8.8.8.8", "1.1.1.1", "172.15.255.255", "172.32.0.1", "192.169.0.1", "2606:4700::1111"]
)
def test_a_public_address_is_taken(text: str) -> None:
    assert is_public(ip_address(text))


@given(st.ip_addresses())
def test_what_python_does_not_call_global_is_refused(address: IPv4Address | IPv6Address) -> None:
    if not address.is_global or address.is_multicast or address.is_reserved:
        assert not is_public(address)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_inside_ipv6_is_refused_whatever_it_is(address: IPv4Address) -> None:
    low = int(address)
    for high in (0, 0xFFFF << 32, 0x0064FF9B << 96, (0x2002 << 112) | (low << 80), (0x2600 << 112) | (0x5EFE << 32)):
        assert not is_public(IPv6Address(high | low))


@pytest.mark.parametrize(
    "entry", ["http://a.test", "A.test", "127.0.0.1", "2130706433", "*", "*.", "a.test/", "[::1]", ""]
)
def test_an_entry_of_the_list_that_is_no_host_stops_the_start(entry: str) -> None:
    with pytest.raises(ServeError):
        Hosts((entry,))


@given(st.text(max_size=60), st.sampled_from(["http://", "https://", "http://pictures.test/", ""]))
def test_any_text_is_a_place_with_a_plain_host_or_refused(text: str, start: str) -> None:
    try:
        place = Place.of(start + text)
    except Refused:
        return
    assert place.host.isascii()
    assert not set("/\\@?#% \r\n") & set(place.host)
    assert place.target.startswith("/")
    assert place.target.isascii()
    assert " " not in place.target
