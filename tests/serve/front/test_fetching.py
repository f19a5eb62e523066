"""Pictures at an address: resolved once, bounded, and never fetched from where only the server can go.

Nothing here leaves the machine: names are resolved by a table, and whatever address is connected to, it is loopback.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpcore
import pytest
from front_server import picture, serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from lvlm_guard.serve.errors import Refused
from lvlm_guard.serve.front.fetching import Fetcher
from lvlm_guard.serve.front.places import Hosts

PUBLIC = "93.184.215.14"
NAMES = {
    "pictures.test": [PUBLIC],
    "also.test": [PUBLIC],
    "deep.allowed.test": [PUBLIC],
    "nowhere.test": [],
    "v6.test": ["2606:2800:21f:cb07:6820:80da:af6b:8b2c"],
    **{f"private{i}.test": [address] for i, address in enumerate([
        "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "240.0.0.1", "255.255.255.255", "168.63.129.16", "::1", "::", "fe80::1%lo", "fd00::1", "ff02::1",
        "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1", "2001:0:7f00:1::1",
    ])},
    "mixed.test": [PUBLIC, "127.0.0.1"],
}  # fmt: skip
HOSTS = Hosts((*(name for name in NAMES if "deep" not in name), "*.allowed.test", "pictures.test:8080"))


class Table:
    """A resolver that knows the names above alone; `rebinds` answers otherwise the second time."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.rebinds: dict[str, list[str]] = {}

    async def resolve(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        if self.asked.count(host) > 1 and host in self.rebinds:
            return self.rebinds[host]
        if host not in NAMES:
            raise OSError("no such name")
        return NAMES[host]


class Loopback(httpcore.AsyncNetworkBackend):
    """Connects to one port of loopback whatever it is asked for, and notes what that was."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: list[tuple[str, int]] = []

    async def connect_tcp(self, host: str, port: int, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        self.asked.append((host, port))
        return await httpcore.AnyIOBackend().connect_tcp("127.0.0.1", self.port, *args, **kwargs)


class Server:
    """Pictures and traps on loopback."""

    def __init__(self) -> None:
        self.hosts: list[str] = []
        self.to = ""

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self._answer)])

    async def _answer(self, request: Request) -> Response:
        self.hosts.append(request.headers["host"])
        path = request.url.path
        if path == "/moved":
            return RedirectResponse(self.to, 302)
        if path == "/loop":
            return RedirectResponse("/loop", 307)
        if path == "/missing":
            return Response("x", 404)
        if path == "/zipped":
            return Response(gzip.compress(picture()), headers={"Content-Encoding": "gzip"})
        if path == "/huge":
            return Response(b"\0" * 20_000)
        if path == "/endless":
            return StreamingResponse(_endless())
        if path == "/slow":
            return StreamingResponse(_drip())
        return Response(picture(), media_type="image/png")


async def _endless() -> AsyncIterator[bytes]:
    for _ in range(200):
        yield b"\0" * 5_000
        await asyncio.sleep(0.002)


async def _drip() -> AsyncIterator[bytes]:
    for _ in range(100):
        yield b"\0"
        await asyncio.sleep(0.05)


SERVER = Server()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(SERVER.app()) as url:
        yield int(url.rpartition(":")[2])


def fetcher(
    port: int, table: Table | None = None, hosts: Hosts = HOSTS, seconds: float = 5
) -> tuple[Fetcher, Loopback]:
    network = Loopback(port)
    return Fetcher(
        hosts, most_bytes=10_000, seconds=seconds, resolve=(table or Table()).resolve, network=network
    ), network


def refused(one: Fetcher, url: str) -> Refused:
    with pytest.raises(Refused) as refusal:
        asyncio.run(one.fetch(url))
    return refusal.value


def test_a_picture_of_an_allowed_host_is_fetched_from_the_address_that_was_checked(port: int) -> None:
    one, network = fetcher(port)
    assert asyncio.run(one.fetch("http://Pictures.test/a.png?b=c#d")) == picture()
    assert network.asked == [(PUBLIC, 80)]
    assert SERVER.hosts[-1] == "pictures.test"


@pytest.mark.parametrize("url", ["http://pictures.test:8080/a", "http://deep.allowed.test/a", "http://v6.test/a"])
def test_ports_and_wildcards_of_the_list_are_taken(port: int, url: str) -> None:
    one, network = fetcher(port)
    assert asyncio.run(one.fetch(url)) == picture()
    assert network.asked[0][0] in (PUBLIC, NAMES["v6.test"][0])


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("private", "mixed", "nowhere"))])
def test_an_allowed_name_that_leads_to_no_public_address_is_not_connected_to(port: int, name: str) -> None:
    one, network = fetcher(port)
    refusal = refused(one, f"http://{name}/a")
    assert refusal.status == 400
    assert network.asked == []
    assert not any(address in refusal.message for address in NAMES[name] if address != "::")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "0",
        "127.0.0.1.",
        "93.184.215.14", "localhost", "other.test", "allowed.test", "notallowed.test", "pictures.test.evil.test",
        "pictures.test:81", "256.1.1.1",
    ],
)  # fmt: skip
def test_what_is_not_on_the_list_is_neither_resolved_nor_connected_to(port: int, host: str) -> None:
    table = Table()
    one, network = fetcher(port, table)
    assert refused(one, f"http://{host}/a").status == 400
    assert (network.asked, table.asked) == ([], [])


def test_without_a_list_nothing_is_fetched(port: int) -> None:
    table = Table()
    one, network = fetcher(port, table, Hosts())
    assert "--image-host" in refused(one, "http://pictures.test/a").message
    assert (network.asked, table.asked) == ([], [])


@pytest.mark.parametrize(
    "url",
    [
        "ftp://pictures.test/a", "file:///etc/passwd", "gopher://pictures.test/", "http:/pictures.test",
        "http:pictures.test",         "http://user:word@pictures.test/a", "http://pictures.test@127.0.0.1/a", "http://pictures.test\\@127.0.0.1/a",
        "http://pictures.test/a b", "http://pictures.test/\r\nX: y", "http://pictures.test:0/a", "http://pictures.test:99999/",
        "http://[::1", "http:///a", "http://píctures.test/a", "http://pictures.test/" + "a" * 3000, "http://pictures.test%00/",
        "http://[fe80::1%25lo]/a", "//pictures.test/a",
    ],
)  # fmt: skip
def test_an_address_that_two_parsers_could_read_differently_is_refused(port: int, url: str) -> None:
    one, network = fetcher(port)
    assert refused(one, url).status == 400
    assert network.asked == []


@pytest.mark.parametrize(
    "to",
    [
        "http://127.0.0.1/a", "http://private4.test/latest/meta-data", "http://[::1]/a", "http://other.test/a",
        "//127.1/a",         "file:///etc/passwd", "https://2130706433/", "http://mixed.test/a", "", "a/b",
    ],
)  # fmt: skip
def test_a_redirect_is_checked_as_the_first_address_was(port: int, to: str) -> None:
    SERVER.to = to
    one, network = fetcher(port)
    assert refused(one, "http://pictures.test/moved").status == 400
    assert network.asked == [(PUBLIC, 80)]


@pytest.mark.parametrize("to", ["/a", "http://also.test/a", "//also.test/a"])
def test_a_redirect_to_what_is_allowed_is_followed(port: int, to: str) -> None:
    SERVER.to = to
    table = Table()
    one, network = fetcher(port, table)
    assert asyncio.run(one.fetch("http://pictures.test/moved")) == picture()
    assert len(network.asked) == len(table.asked) == 2


def test_a_name_that_changes_to_a_private_address_between_two_requests_is_refused(port: int) -> None:
    SERVER.to = "/a"
    table = Table()
    table.rebinds["pictures.test"] = ["127.0.0.1"]
    one, network = fetcher(port, table)
    assert refused(one, "http://pictures.test/moved").status == 400
    assert network.asked == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("loop", 422, "redirects"), ("missing", 422, "404"), ("zipped", 422, "compressed"), ("huge", 413, "10,000"),
        ("endless", 413, "10,000"),
    ],
)  # fmt: skip
def test_what_is_no_bounded_picture_is_refused(port: int, path: str, status: int, told: str) -> None:
    refusal = refused(fetcher(port)[0], f"http://pictures.test/{path}")
    assert (refusal.status, told in refusal.message) == (status, True)


def test_a_host_that_drips_is_given_up_at_the_time_out_of_the_whole_picture(port: int) -> None:
    assert "0.3 seconds" in refused(fetcher(port, seconds=0.3)[0], "http://pictures.test/slow").message


def test_a_name_that_is_not_found_and_a_port_that_is_closed_are_told_alike() -> None:
    closed = refused(fetcher(1)[0], "http://pictures.test/a")
    unknown = refused(fetcher(1, hosts=Hosts(("unknown.test",)))[0], "http://unknown.test/a")
    assert unknown.status == closed.status == 422


def test_tls_is_checked_against_the_name_and_not_the_address() -> None:
    names: list[str | None] = []

    class Stream(httpcore.AsyncMockStream):
        async def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: Any = None) -> Any:
            names.append(server_hostname)
            assert ssl_context.check_hostname
            return self

    class Network(httpcore.AsyncNetworkBackend):
        async def connect_tcp(self, host: str, port: int, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
            assert (host, port) == (PUBLIC, 443)
            return Stream([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"])

    one = Fetcher(HOSTS, most_bytes=10, seconds=1, resolve=Table().resolve, network=Network())
    assert asyncio.run(one.fetch("https://pictures.test/a")) == b"ok"
    assert names == ["pictures.test"]
