"""Fetch a picture from an http(s) address that a client chose, without being led to where only the server can go.

Only hosts of the operator's list are asked. A name is resolved once, here; each of its addresses has to be public, and
the connection goes to the address that was checked, so that a name that changes in between (DNS rebinding) leads
nowhere. Every redirect starts over with the same checks. Proxies of the environment are not used: they resolve
themselves. TLS certificates are checked against the name. What is behind an address that is refused is not told.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Any

import httpcore

from lvlm_guard.serve.errors import Refused
from lvlm_guard.serve.front.places import PORTS, Hosts, Place, is_public

MOST_REDIRECTS = 3
_HEADERS = ((b"User-Agent", b"lvlm-guard"), (b"Accept", b"image/*"), (b"Accept-Encoding", b"identity"))
_REDIRECTS = (301, 302, 303, 307, 308)


async def system(host: str, port: int) -> list[str]:
    """Return the addresses of a name as this machine's resolver has them; raises `OSError` where it has none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class Fetcher:
    """Fetches pictures from the hosts of a list.

    Args:
        hosts: that may be asked.
        most_bytes: of a picture.
        seconds: for one picture, redirects included.
        resolve: gives the addresses of a name, as `system` does.
        network: what opens connections; it is given addresses alone, never names.
    """

    def __init__(
        self,
        hosts: Hosts,
        *,
        most_bytes: int,
        seconds: float,
        resolve: Callable[[str, int], Awaitable[list[str]]] = system,
        network: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self.hosts, self.most_bytes, self.seconds = hosts, most_bytes, seconds
        self._resolve, self._network = resolve, network

    async def fetch(self, url: str) -> bytes:
        """Return what is at a URL.

        Raises:
            Refused: 400, the address may not be asked or is none; 422, nothing useful came from there.
        """
        try:
            async with asyncio.timeout(self.seconds):
                place = Place.of(url)
                for _ in range(MOST_REDIRECTS + 1):
                    got = await self._get(place)
                    if isinstance(got, bytes):
                        return got
                    place = got
        except (OSError, UnicodeError, httpcore.TimeoutException) as error:
            raise _failed(f"no answer within {self.seconds:g} seconds, or no connection") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
            raise _failed("the connection failed") from error
        raise _failed(f"more than {MOST_REDIRECTS} redirects")

    async def _get(self, place: Place) -> bytes | Place:
        """Return the content, or where it has moved."""
        address = await self._checked(place)
        default = place.port == PORTS[place.scheme]
        name = place.host if default else f"{place.host}:{place.port}"
        # the name is for the certificate and for the host alone: whatever it means by now, nobody looks it up again
        pinned: dict[str, Any] = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), self.seconds)}
        pinned["sni_hostname"] = place.host
        target = httpcore.URL(
            scheme=place.scheme.encode(), host=address.encode(), port=place.port, target=place.target.encode()
        )
        headers = [(b"Host", name.encode()), *_HEADERS]
        pool = httpcore.AsyncConnectionPool(max_connections=1, network_backend=self._network)
        async with pool, pool.stream("GET", target, headers=headers, extensions=pinned) as answer:
            said = {name.lower(): value for name, value in answer.headers}
            if answer.status in _REDIRECTS:
                return place.joined(said.get(b"location", b"").decode("ascii", "replace"))
            if answer.status != 200:
                raise _failed(f"it answered with status {answer.status}")
            if said.get(b"content-encoding", b"identity").lower() != b"identity":
                raise _failed("it is compressed, which was not asked for")
            length = said.get(b"content-length", b"0")
            if length.isdigit() and int(length[:20]) > self.most_bytes:
                raise self._too_large()
            content = bytearray()
            async for piece in answer.aiter_stream():
                content += piece
                if len(content) > self.most_bytes:
                    raise self._too_large()
            return bytes(content)

    async def _checked(self, place: Place) -> str:
        """Return the address to connect to, after every check."""
        if not self.hosts.take(place):
            raise Refused(
                400,
                f"Pictures are not fetched from {place.host[:80]!r}: it is not on the operator's list. Send the "
                "picture itself as data:image/png;base64,..., or ask the operator to allow the host (--image-host).",
            )
        addresses = await self._resolve(place.host, place.port)
        if not addresses or not all(is_public(ip_address(one)) for one in addresses):
            # which address, and why, would tell a client what the inner network's names mean
            raise Refused(
                400, f"Pictures are not fetched from {place.host[:80]!r}: its name leads to no public address."
            )
        return addresses[0]

    def _too_large(self) -> Refused:
        return Refused(
            413, f"The picture at this address is larger than {self.most_bytes:,} bytes: send a smaller one."
        )


def _failed(why: str) -> Refused:
    return Refused(422, f"The picture could not be fetched: {why}. Send it as data:image/png;base64,... instead.")
