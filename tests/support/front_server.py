"""Real servers on loopback for the front: an app in vLLM's place that says what reached it, and a matcher service."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from numpy.typing import NDArray
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from lvlm_guard.serve.wire import pack_mask, pack_scores


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Run an app on a free port of loopback and give its address."""
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


def picture(seed: int = 0, kind: str = "PNG", size: tuple[int, int] = (12, 8), **options: Any) -> bytes:
    """Return a picture's file, another one for each seed."""
    held = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(held, kind, **options)
    return held.getvalue()


def data_url(data: bytes, media: str = "image/png") -> str:
    """Return a file as a data URL."""
    return f"data:{media};base64,{base64.b64encode(data).decode()}"


def turn(text: str, *urls: str, role: str = "user") -> dict[str, Any]:
    """Return a message with pictures."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def expected_mask(image: bytes, question: str) -> NDArray[np.bool_]:
    """Return the mask that `MatcherStandIn` gives."""
    digest = hashlib.sha256(image + question.encode()).digest()
    return np.random.default_rng(list(digest)).random((384, 384)) < 0.5


def expected_score(image: bytes, claim: str) -> float:
    """Return the score that `MatcherStandIn` gives."""
    return hashlib.sha256(image + claim.encode()).digest()[0] / 256


@dataclass
class MatcherStandIn:
    """A matcher service whose answers follow from what it is asked; it can be told to fail."""

    asked: list[str] = field(default_factory=list)
    version: str = "stand-in@1"
    fails: int = 0
    slow: float = 0
    spoilt: bool = False
    given_up: int = 0
    side: int | None = None
    template: str | None = None
    images: list[bytes] = field(default_factory=list)

    def app(self) -> Starlette:
        """Return its ASGI app."""
        return Starlette(
            routes=[
                Route("/mask", self._mask, methods=["POST"]),
                Route("/scores", self._scores, methods=["POST"]),
                Route("/health", self._health),
            ]
        )

    async def _health(self, _: Request) -> Response:
        if self.fails:
            return JSONResponse({"error": {"message": "no"}}, self.fails, {"Retry-After": "7"})
        return JSONResponse({"status": "ok", "version": self.version, "side": self.side, "template": self.template})

    async def _mask(self, request: Request) -> Response:
        image, asked = await self._read(request)
        text = pack_mask(expected_mask(image, asked["question"]))
        self.asked.append(asked["question"])
        return await self._answer(request, {"mask": text[:-8] if self.spoilt else text})

    async def _scores(self, request: Request) -> Response:
        image, asked = await self._read(request)
        claims = asked["claims"]
        self.asked.append(f"{len(claims)} claims")
        return await self._answer(
            request, {"scores": pack_scores(claims, [expected_score(image, claim) for claim in claims])}
        )

    async def _read(self, request: Request) -> tuple[bytes, dict[str, Any]]:
        asked = await request.json()
        self.images.append(base64.b64decode(asked["image"]))
        return self.images[-1], asked

    async def _answer(self, request: Request, said: dict[str, Any]) -> Response:
        waited = 0.0
        while waited < self.slow:
            await asyncio.sleep(0.02)
            waited += 0.02
            if await request.is_disconnected():
                self.given_up += 1
                return Response(status_code=499)
        if self.fails:
            return JSONResponse({"error": {"message": "no"}}, self.fails, {"Retry-After": "7"})
        return JSONResponse({**said, "version": self.version})


@dataclass
class EngineStandIn:
    """An app in vLLM's place: its answers hold the body that reached it."""

    names: tuple[str, ...] = ("tiny",)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    left: int = 0
    hold: bool = False
    status: int = 200
    media: str = "application/json"
    breaks: bool = False
    slow: float = 0.0

    def app(self) -> Starlette:
        """Return its ASGI app, with more ways in than the front leaves open."""
        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
            *(
                Route(path, self._said, methods=["GET", "POST"])
                for path in ("/health", "/ping", "/version", "/metrics")
            ),
            Route("/{path:path}", self._said, methods=["GET", "POST", "PUT", "DELETE"]),
        ]
        return Starlette(routes=routes)

    async def _said(self, request: Request) -> Response:
        self.paths.append(request.url.path)
        return PlainTextResponse("reached")

    async def _models(self, request: Request) -> Response:
        cards = [{"id": name, "object": "model", "created": 1, "owned_by": "x"} for name in (*self.names, "hidden")]
        return JSONResponse({"object": "list", "data": cards})

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        while self.hold:
            await asyncio.sleep(0.02)
            if await request.is_disconnected():
                self.left += 1
                return Response(status_code=499)
        if self.status != 200:
            return JSONResponse({"error": {"message": "engine", "code": self.status}}, self.status)
        if self.breaks and not body.get("stream"):
            return StreamingResponse(self._pieces(body), media_type="application/json")
        if body.get("stream"):
            return StreamingResponse(self._pieces(body), media_type="text/event-stream")
        choices = [
            {"index": i, "finish_reason": "stop", "message": {"role": "assistant", "content": json.dumps(body)}}
            for i in range(body.get("n") or 1)
        ]
        answer = {"id": "x", "object": "chat.completion", "created": 1, "model": self.names[0], "choices": choices}
        return Response(json.dumps({**answer, "usage": None}), media_type=self.media)

    async def _pieces(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        """Yield the body letter by letter for each choice; events come apart at odd places, as networks do it."""
        events = []
        for i in range(body.get("n") or 1):
            for word in ("one", " two", " three"):
                events.append({"index": i, "delta": {"content": word}, "finish_reason": None})
            events.append({"index": i, "delta": {}, "finish_reason": "stop"})
        chunks: list[dict[str, Any]] = [{"choices": [choice]} for choice in events]
        if (body.get("stream_options") or {}).get("include_usage"):
            chunks.append({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})
        frame = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": self.names[0]}
        raw = b"".join(b"data: " + json.dumps(frame | chunk).encode() + b"\n\n" for chunk in chunks)
        raw += b"data: [DONE]\n\n"
        for i in range(0, len(raw), 37):
            if self.breaks and i > len(raw) // 2:
                raise ConnectionError("lost")
            await asyncio.sleep(self.slow)
            yield raw[i : i + 37]
