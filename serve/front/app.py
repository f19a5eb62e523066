"""The front: a stateless proxy before an OpenAI-compatible engine, and the only author of the guard's arguments.

It holds nothing of a request once the engine has it, and does no work on a client's bytes itself: reading is done by
processes that can be killed (`reading`), matching by the matcher service, and answers pass by in pieces. So many of it
can run beside one another, and one that is killed leaves nothing behind but requests that end in an error.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import anyio
import httpx
from prometheus_client import CollectorRegistry
from starlette.types import Message, Receive, Scope, Send

from lvlm_guard.proof import CHECK, KNOBS
from lvlm_guard.serve.errors import MaskdError, Refused
from lvlm_guard.serve.front import answers
from lvlm_guard.serve.front.answers import Header, Proof
from lvlm_guard.serve.front.canary import Gate
from lvlm_guard.serve.front.fetching import Fetcher
from lvlm_guard.serve.front.guards import Guards, Matching, method_of, unmatched
from lvlm_guard.serve.front.metrics import FrontMetrics
from lvlm_guard.serve.front.places import Hosts
from lvlm_guard.serve.front.reading import VIEWED, Addresses, Read, Readers, with_fields
from lvlm_guard.serve.front.routes import CHAT, KEYED, METRICS, MODELS, READY, Key, route_of
from lvlm_guard.serve.front.settings import KEY, FrontSettings
from lvlm_guard.serve.front.upstream import EVENTS, Once, Upstream, kind_of, passed_on, shown
from lvlm_guard.serve.maskd.client import MaskdClient
from lvlm_guard.serve.receiving import Bodies, Gone, while_there

log = logging.getLogger(__name__)


class Front:
    """An ASGI app.

    Args:
        settings: None: those of the environment.
        key: that requests need, "" for none; None: that of the environment.
        matching: the matcher service; None: the one that the settings name.
        fetcher: of pictures from the network; None: by the settings.
        metrics: None: its own.
    """

    behind = "engine"

    def __init__(
        self,
        settings: FrontSettings | None = None,
        *,
        key: str | None = None,
        matching: Matching | None = None,
        fetcher: Fetcher | None = None,
        metrics: FrontMetrics | None = None,
    ) -> None:
        self.settings = it = settings or FrontSettings.from_environment()
        self.metrics = metrics or FrontMetrics(CollectorRegistry())
        self._refused = Proof("", it.guards).refused() + [(CHECK.encode(), b"refused")] * bool(it.checks)
        self._names = it.every_name
        self._key = Key(os.environ.get(KEY, "") if key is None else key)
        self._fetcher = fetcher or Fetcher(Hosts(it.image_hosts), most_bytes=it.most_bytes, seconds=it.fetch_seconds)
        self._bodies = Bodies(it.most_body, it.most_held, it.body_seconds)
        self._readers = Readers(it)
        if matching is None and it.maskd_url:
            matching = MaskdClient(it.maskd_url, it.maskd_seconds)
        self._guards = Guards(matching, self.metrics)
        self._gate = Gate(it.opened, it.token)
        self._upstream = Upstream(it.upstream, it.upstream_key, it.upstream_at_once)
        self._most = {"plain": it.plain_at_once, "guarded": it.guarded_at_once}
        self._now = {"plain": 0, "guarded": 0}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        if scope["type"] == "lifespan":
            return await self._living(receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        guards: list[Header] = []
        try:
            route = route_of(scope)
            if route in KEYED:
                self._key.check(scope)
            if route == ("POST", CHAT):
                guards = self._refused
                return await self._while_there(scope, receive, send)
            status, headers, raw = await self._told(route[1])
            await reply(send, status, headers, raw)
        except Refused as refused:
            await self._refuse(send, refused, guards)
        except MaskdError as error:
            await self._refuse(send, unmatched(error), guards)
        except Gone:
            self.metrics.gone.inc()
        except Exception:  # never a half answer, never silence; what went wrong stands in the log
            log.exception("A request could not be answered.")
            await self._refuse(send, Refused(500, "The front failed; its log says why.", None, "front"), guards)

    async def _living(self, receive: Receive, send: Send) -> None:
        await receive()
        async with anyio.create_task_group() as group:
            group.start_soon(self._readers.warm)
            await send({"type": "lifespan.startup.complete"})
            await receive()
            group.cancel_scope.cancel()
        await self._guards.aclose()
        await self._upstream.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _told(self, path: str) -> tuple[int, list[Header], bytes]:
        """Return what is answered to a GET."""
        if path == READY:
            self._gate.check_open()
        if path == METRICS:
            return await self._metrics()
        answer = await self._upstream.get("/health" if path == READY else path)
        raw = answer.content
        if path == MODELS and answer.status_code == 200:
            try:
                raw = answers.model_list(raw, self._names)
            except ValueError as error:
                raise Refused(502, "The engine's list of models can't be read.", None, "engine") from error
        return answer.status_code, shown(answer), raw

    async def _metrics(self) -> tuple[int, list[Header], bytes]:
        """Return the front's figures behind the engine's, alone where that is away."""
        own = await anyio.to_thread.run_sync(self.metrics.text)
        try:
            answer = await self._upstream.get(METRICS)
            theirs = answer.content if answer.status_code == 200 else b""
        except Refused:
            theirs = b""
        kind = b"text/plain; version=0.0.4; charset=utf-8"
        return 200, [(b"content-type", kind)], theirs.rstrip() + b"\n" * bool(theirs) + own

    async def _refuse(self, send: Send, refused: Refused, guards: Sequence[Header]) -> None:
        self.metrics.refused.labels(str(refused.status), refused.reason).inc()
        headers, raw = answers.error(refused.status, refused.message, refused.retry_after, guards)
        await reply(send, refused.status, headers, raw)

    async def _while_there(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a chat, and stop when its client leaves."""
        whole: list[bool] = []

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                whole.append(True)
            await send(message)

        with ExitStack() as held:
            raw = [await self._bodies.read(held, scope["headers"], receive)]
            try:
                await while_there(receive, lambda: self._chat(scope["headers"], raw, held.close, noted))
            except Gone:
                if not whole:  # who has the whole answer may go
                    raise

    async def _chat(self, headers: Sequence[Header], raw: list[bytes], release: Callable[[], None], send: Send) -> None:
        """Answer a chat whose body is the only thing in a list, so that nothing holds it once it was sent."""
        body, proof = await self._guarded(*await self._read(raw, headers))
        asking = self._upstream.post(CHAT, Once(body, release), passed_on(headers) | self._gate.rank(headers))
        del raw[:], body
        async with asking as answer:
            await self._pass_on(answer, proof, send)

    async def _guarded(self, read: Read, seen: str, chosen: Matching | None) -> tuple[bytes, Proof]:
        """Return what the engine is asked, and what will be said of its answer; of what `_read` gave."""
        method = method_of(self._names.meant(read.name)[1], read.knobs)
        proof = Proof(read.name, self.settings.guards, unguarded=read.unguarded)
        if method is None or read.guard is None:  # nothing to guard
            return read.body, proof
        with self._place("guarded"):
            made = await self._guards.arguments(method, read.views, read.question, seen, chosen)
        knobs = {knob: float(getattr(method, knob)) for knob in KNOBS[method.name]}
        ran = replace(
            proof, method=method.name, knobs=knobs, version=made.version, claims=made.claims, notes=made.notes
        )
        return with_fields(read.body, made.fields), ran

    async def _read(self, raw: list[bytes], headers: Sequence[Header]) -> tuple[Read, str, Matching | None]:
        """Return what was asked, which matcher its pictures were prepared for, and what answers in its place."""
        fetched: dict[str, bytes] = {}
        seen = self._guards.known
        with self._place("plain"):
            while True:
                read = await self._readers.read(raw[0], seen, fetched)
                if isinstance(read, Addresses):
                    got = [await self._fetcher.fetch(url) for url in read.urls]
                    fetched |= dict(zip(read.urls, got, strict=True))
                    continue
                guarded = self._names.meant(read.name)[1] is not None
                chosen = self._gate.check(headers, read.name) if guarded else None
                if read.guard not in VIEWED or seen is not None:
                    return read, "" if seen is None else seen[0], chosen
                seen = await (chosen or self._guards.service).seen()

    @contextmanager
    def _place(self, kind: str) -> Iterator[None]:
        """Take one of the places of requests that are being prepared; raises `Refused`, 503, where there is none."""
        if self._now[kind] >= self._most[kind]:
            raise Refused(503, "Too many requests are being prepared at once. Ask again later.", 1)
        self._now[kind] += 1
        try:
            yield
        finally:
            self._now[kind] -= 1

    async def _pass_on(self, answer: httpx.Response, proof: Proof, send: Send) -> None:
        kind, said = kind_of(answer), [*shown(answer), *proof.headers()]
        if answer.status_code != 200:
            await reply(send, answer.status_code, [*shown(answer), *proof.refused()], await whole(answer))
        elif kind == EVENTS:
            self._count(proof)
            said.append((b"cache-control", b"no-cache"))
            await self._stream(send, said, answers.marked_stream(proof, answer.aiter_raw()))
        else:
            try:
                if kind != "application/json":
                    raise ValueError(kind)
                raw = proof.marked(await whole(answer))
            except ValueError as error:
                message = "The engine's answer can't say which guard made it, so it is not given. Is it another vLLM?"
                raise Refused(502, message, None, "engine") from error
            self._count(proof)
            await reply(send, 200, said, raw)

    async def _stream(self, send: Send, headers: Sequence[Header], pieces: AsyncIterator[bytes]) -> None:
        """Send an answer in pieces.

        Where it breaks off, an event says so, and no end of the body comes: no client takes it for the whole answer.
        """
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async for piece in pieces:
                if piece:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        except (Refused, httpx.HTTPError) as error:
            self.metrics.broken.inc()
            why = (
                error.message
                if isinstance(error, Refused)
                else f"The {self.behind} was lost in the middle of the answer."
            )
            said = b"data: " + answers.error(502, why)[1] + b"\n\n"
            return await send({"type": "http.response.body", "body": said, "more_body": True})
        return await send({"type": "http.response.body", "body": b""})

    def _count(self, proof: Proof) -> None:
        self.metrics.answered.labels(proof.method or "none").inc()
        if proof.unguarded:
            self.metrics.unneeded.inc()


async def whole(answer: httpx.Response) -> bytes:
    """Return an answer's body; raises `Refused` (502) where it does not end."""
    try:
        return await answer.aread()
    except httpx.HTTPError as error:
        raise Refused(502, "The engine was lost in the middle of the answer.", None, "engine") from error


async def reply(send: Send, status: int, headers: Sequence[Header], raw: bytes) -> None:
    """Send a whole answer."""
    length = (b"content-length", str(len(raw)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": raw})
