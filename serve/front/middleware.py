"""The ASGI middleware around vLLM's app: the only author of the guard's arguments.

    vllm serve ... --middleware lvlm_guard.serve.front.middleware.GuardFront --trust-request-mm-kwargs

set up by the environment variables `LVLM_GUARD_FRONT` (`FrontSettings.to_json()`) and `VLLM_API_KEY`. vLLM puts such a
middleware outside its own check of the key, so this one checks it itself, before it reads anything.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from lvlm_guard.serve.errors import Refused
from lvlm_guard.serve.front import answers
from lvlm_guard.serve.front.answers import Header, MarkedStream, Proof
from lvlm_guard.serve.front.canary import Gate
from lvlm_guard.serve.front.fetching import Fetcher
from lvlm_guard.serve.front.guards import Arguments, Guards, Matching
from lvlm_guard.serve.front.metrics import FrontMetrics, process_metrics
from lvlm_guard.serve.front.names import Names
from lvlm_guard.serve.front.pictures import Pictures
from lvlm_guard.serve.front.places import Hosts
from lvlm_guard.serve.front.requests import Asked, asked
from lvlm_guard.serve.front.routes import CHAT, KEYED, MODELS, READY, Key, route_of
from lvlm_guard.serve.front.sending import Marking
from lvlm_guard.serve.front.settings import KEY, FrontSettings
from lvlm_guard.serve.maskd.client import MaskdClient

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


PASSED_ON = frozenset({b"host", b"authorization", b"content-type", b"user-agent", b"traceparent", b"tracestate"})
"""Headers of a request that vLLM sees. Others would choose its priority, its engine, or how its answer is packed."""


class _Gone(Exception):
    """The client left; nobody is there to be answered."""


class GuardFront:
    """Stands in front of an OpenAI-compatible app.

    Args:
        app: vLLM's own.
        settings: None: those of the environment.
        key: that requests need, "" for none; None: that of the environment.
        matching: the matcher service; None: the one that the settings name.
        fetcher: of pictures from the network; None: by the settings.
        metrics: None: this process's.
    """

    def __init__(
        self,
        app: App,
        settings: FrontSettings | None = None,
        *,
        key: str | None = None,
        matching: Matching | None = None,
        fetcher: Fetcher | None = None,
        metrics: FrontMetrics | None = None,
    ) -> None:
        self._app = app
        self.settings = it = settings or FrontSettings.from_environment()
        self.metrics = metrics or process_metrics()
        self._names = Names(it.names, it.guards)
        self._key = Key(os.environ.get(KEY, "") if key is None else key)
        fetcher = fetcher or Fetcher(Hosts(it.image_hosts), most_bytes=it.most_bytes, seconds=it.fetch_seconds)
        self._pictures = Pictures(
            fetcher, most_bytes=it.most_bytes, most_pixels=it.most_pixels, at_once=it.decoded_at_once
        )
        if matching is None and it.maskd_url:
            matching = MaskdClient(it.maskd_url, it.maskd_seconds)
        self._guards = Guards(matching, self.metrics)
        self._gate = Gate(it.opened, it.token)
        self._at_once = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let vLLM answer what may be."""
        if scope["type"] == "lifespan":
            try:
                return await self._app(scope, receive, send)
            finally:
                await self._guards.aclose()
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        guards: list[Header] = []
        try:
            route = route_of(scope)
            if route in KEYED:
                self._key.check(scope)
            if route == ("POST", CHAT):
                guards = Proof("", self.settings.guards).refused()
                return await self._chat(scope, receive, send)
            if route == ("GET", MODELS):
                marking = Marking(send, lambda raw: answers.model_list(raw, self._names))
                return await self._app(_readable(scope), receive, marking)
            if route == ("GET", READY):
                headers, raw = self._gate.ready()
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                return await send({"type": "http.response.body", "body": raw})
            return await self._app(scope, receive, send)
        except Refused as refused:
            self.metrics.refused.labels(str(refused.status), refused.reason).inc()
            headers, raw = answers.error(refused.status, refused.message, refused.retry_after, guards)
            await send({"type": "http.response.start", "status": refused.status, "headers": headers})
            await send({"type": "http.response.body", "body": raw})
        except _Gone:
            self.metrics.gone.inc()

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = await self._read(scope, receive)  # who sends slowly takes nobody's place
        self._at_once += 1
        try:
            if self._at_once > self.settings.at_once:
                raise Refused(503, "Too many requests are being prepared at once. Ask again later.", 1)
            request = asked(
                raw,
                self._names,
                most_pictures=self.settings.most_pictures,
                drop=self.settings.drop,
                special_tokens=self.settings.special_tokens,
            )
            guarded = self._names.meant(request.name)[1] is not None
            chosen = self._gate.check(scope["headers"], request.name) if guarded else None
            arguments, listening = await self._while_there(self._admitted(request, chosen), receive)
        finally:
            self._at_once -= 1
        try:
            proof = self._proof(request, arguments)
            marking = Marking(
                send,
                proof.marked,
                proof.headers(),
                proof.refused(),
                MarkedStream(proof).feed,
                lambda: self._count(proof),
            )
            await self._app(*_replayed(scope, _body(request, arguments), listening, receive), marking)
        finally:
            listening.cancel()

    def _count(self, proof: Proof) -> None:
        self.metrics.answered.labels(proof.method or "none").inc()
        if proof.unguarded:
            self.metrics.unneeded.inc()

    async def _admitted(self, request: Asked, chosen: Matching | None) -> Arguments | None:
        """Resolve the pictures in place, and get what the guard needs."""
        pictures = await asyncio.gather(*(self._pictures.resolve(part["url"]) for part in request.chat.pictures))
        for part, picture in zip(request.chat.pictures, pictures, strict=True):
            part["url"] = picture.url
        if request.method is None:
            return None
        return await self._guards.arguments(request.method, pictures, request.chat.question, chosen)

    def _proof(self, request: Asked, arguments: Arguments | None) -> Proof:
        method = request.method.name if request.method else None
        it = arguments or Arguments({}, {})
        return Proof(
            request.name,
            self.settings.guards,
            method,
            request.knobs,
            it.version,
            request.unguarded,
            it.claims,
            it.notes,
        )

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        most = self.settings.most_body
        length = next((value for name, value in scope["headers"] if name.lower() == b"content-length"), b"0")
        raw = bytearray()
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                more = not (length.isdigit() and int(length[:20]) > most)
                too_large = not more
                while more and not too_large:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    raw += message.get("body", b"")
                    more, too_large = message.get("more_body", False), len(raw) > most
        except TimeoutError:
            raise Refused(408, f"The request did not arrive within {self.settings.body_seconds:g} seconds.") from None
        if too_large:
            raise Refused(413, f"The request is larger than {most:,} bytes: send fewer or smaller pictures.")
        return bytes(raw)

    async def _while_there(self, work: Any, receive: Receive) -> tuple[Any, asyncio.Task[Message]]:
        """Return what the work gives and the task that listens for the client's leaving; no work for who has left."""
        working = asyncio.ensure_future(work)
        listening: asyncio.Task[Message] = asyncio.ensure_future(receive())
        try:
            await asyncio.wait((working, listening), return_when=asyncio.FIRST_COMPLETED)
            if not working.done() and listening.result()["type"] == "http.disconnect":
                raise _Gone
            return await working, listening
        except BaseException:
            working.cancel()
            listening.cancel()
            raise


def _body(request: Asked, arguments: Arguments | None) -> bytes:
    body = dict(request.body)
    if arguments is not None:
        body["vllm_xargs"] = arguments.xargs
        if arguments.views:
            body["mm_processor_kwargs"] = arguments.views
    return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()


def _readable(scope: Scope) -> Scope:
    """Return a scope whose answer comes as plain text through `send`: not compressed, not as a file."""
    headers = [(name, value) for name, value in scope["headers"] if name.lower() in PASSED_ON]
    return {**scope, "headers": headers, "extensions": {}}


def _replayed(scope: Scope, raw: bytes, listening: asyncio.Task[Message], receive: Receive) -> tuple[Scope, Receive]:
    """Return scope and `receive` of the request with another body; vLLM still notices when the client leaves."""
    waiting: list[asyncio.Task[Message]] = [listening]
    held = [raw]

    async def again() -> Message:
        if held:
            return {"type": "http.request", "body": held.pop(), "more_body": False}
        if waiting and not waiting[0].cancelled():
            message = await asyncio.shield(waiting[0])
            waiting.clear()
            return message
        return await receive()

    inner = _readable(scope)
    return {**inner, "headers": [*inner["headers"], (b"content-length", str(len(raw)).encode())]}, again
