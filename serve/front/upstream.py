"""The engine behind the front: asked over HTTP, with a key of its own; its answers pass through with their proof."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx

from lvlm_guard.serve.errors import Refused

AGAIN = 5.0
"""Seconds after which to ask again where the engine is not there."""

PASSED_ON = ("traceparent", "tracestate")
"""Headers of a request that the engine sees. Others choose its priority, its engine, or how its answer is packed."""

EVENTS = "text/event-stream"

_HEADERS = (b"retry-after",)  # of an answer that the client sees, beside its type


class Once(httpx.AsyncByteStream):
    """A body that is let go of as soon as it was sent; something is called then."""

    def __init__(self, body: bytes, sent: Callable[[], None] = lambda: None) -> None:
        self.length = len(body)
        self._held = [body]
        self._sent = sent

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield it."""
        yield self._held.pop()
        self._sent()


class Upstream:
    """One engine.

    Args:
        url: http://HOST:PORT, the path of its socket, or the `base_url` that OpenAI's clients take, such as
            https://HOST/v1.
        key: that it asks for; "" for none.
        at_once: chats that it is asked at one time, further ones wait; 0 for any number.
    """

    def __init__(self, url: str, key: str = "", at_once: int = 0) -> None:
        on_socket = url.startswith("/")
        self._rooted = not on_socket and bool(urlsplit(url).path.strip("/"))
        self._places: AbstractAsyncContextManager[Any] = asyncio.Semaphore(at_once) if at_once else nullcontext()
        # an answer can take as long as the model takes; who is gone is noticed otherwise
        timeout = httpx.Timeout(None, connect=5.0, write=60.0)
        # vLLM closes connections that were idle for 5 s
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=2.0)
        transport = httpx.AsyncHTTPTransport(uds=url if on_socket else None, limits=limits, trust_env=False)
        self._http = httpx.AsyncClient(
            base_url="http://engine" if on_socket else url,
            headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=timeout,
            transport=transport,
            trust_env=False,
        )

    @asynccontextmanager
    async def post(self, path: str, body: Once, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
        """Give an answer whose body has not come yet.

        Raises:
            Refused: 503, the engine is not there; 502, it gave no answer.
        """
        sent = {"Content-Type": "application/json", "Content-Length": str(body.length), **headers}
        asking = self._http.build_request("POST", self._path(path), headers=sent, content=body)
        del body
        async with self._places:
            answer = await self._send(asking, stream=True)
            try:
                yield answer
            finally:
                with anyio.CancelScope(shield=True):
                    await answer.aclose()

    async def get(self, path: str) -> httpx.Response:
        """Return an answer, whole; raises as `post` does."""
        return await self._send(self._http.build_request("GET", self._path(path), timeout=10.0), stream=False)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def _path(self, path: str) -> str:
        return path.removeprefix("/v1") if self._rooted else path

    async def _send(self, request: httpx.Request, stream: bool) -> httpx.Response:
        try:
            return await self._http.send(request, stream=stream)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Refused(503, "The engine is not there (yet, or any more). Ask again.", AGAIN, "engine") from error
        except httpx.HTTPError as error:
            raise Refused(502, f"The engine gave no answer ({type(error).__name__}).", None, "engine") from error


def kind_of(answer: httpx.Response) -> str:
    """Return the media type of an answer, in lower case."""
    return str(answer.headers.get("content-type", "")).partition(";")[0].strip().lower()


def shown(answer: httpx.Response) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer that a client sees."""
    kind = answer.headers.get("content-type", "application/json").encode("latin-1")
    kept = [(name.lower(), value) for name, value in answer.headers.raw if name.lower() in _HEADERS]
    return [(b"content-type", kind), *kept]


def passed_on(headers: Any) -> dict[str, str]:
    """Return the headers of an ASGI request that the engine sees."""
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in headers
        if name.lower().decode("latin-1") in PASSED_ON
    }
