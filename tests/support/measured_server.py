"""A server to be measured: the real front, a matcher service, and an engine whose pace is known."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from front_server import MatcherStandIn, serving
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from lvlm_guard.serve.front.app import Front
from lvlm_guard.serve.front.metrics import FrontMetrics
from lvlm_guard.serve.front.settings import FrontSettings

NATURAL = 3  # tokens of an answer that ends by itself


@dataclass
class Engine:
    """An app in vLLM's place: an answer is its prompt's length and the guard it was asked for, token by token."""

    names: tuple[str, ...] = ("tiny",)
    pace: float = 0.0  # seconds a token
    guarded_pace: float = 0.0  # more for a guarded one
    bodies: list[dict[str, Any]] = field(default_factory=list)
    running: int = 0
    most: int = 0
    refuse_after: int | None = None
    short: bool = False
    other: str = ""  # said instead, by a broken guard
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self._gauge = Gauge("vllm:num_requests_running", "", registry=self.registry)
        Gauge("vllm:num_requests_waiting", "", registry=self.registry)
        self.cache = Gauge("vllm:kv_cache_usage_perc", "", registry=self.registry)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/metrics", self._metrics),
                Route("/version", self._version),
            ]
        )

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in self.names]})

    async def _version(self, _: Request) -> Response:
        return JSONResponse({"version": "0.0.1"})

    async def _metrics(self, _: Request) -> Response:
        self._gauge.set(self.running)
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        if self.refuse_after is not None and len(self.bodies) > self.refuse_after:
            return JSONResponse({"error": {"message": "worn out", "code": 500}}, 500)
        if body.get("stream"):
            return StreamingResponse(self._pieces(body), media_type="text/event-stream")
        words = [word async for word in self._words(body)]
        message = {"role": "assistant", "content": " ".join(words)}
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": self._finish(body),
            "token_ids": [*range(len(words))],
        }
        return JSONResponse({"choices": [choice], "usage": {"completion_tokens": len(words)}})

    def _length(self, body: dict[str, Any]) -> int:
        most = int(body.get("max_completion_tokens") or body["max_tokens"])
        return most if body.get("ignore_eos") and not self.short else min(NATURAL, most)

    def _finish(self, body: dict[str, Any]) -> str:
        most = int(body.get("max_completion_tokens") or body["max_tokens"])
        return "length" if self._length(body) == most else "stop"

    async def _words(self, body: dict[str, Any]) -> AsyncIterator[str]:
        guard = (body.get("vllm_xargs") or {}).get("guard", "plain")
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for place in range(self._length(body)):
                await asyncio.sleep(self.pace + (self.guarded_pace if guard != "plain" else 0))
                yield self.other or f"{guard}{place}"
        finally:
            self.running -= 1

    async def _pieces(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        yield _event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        count = 0
        async for word in self._words(body):
            count += 1
            text = word if count == 1 else f" {word}"
            ended = self._finish(body) if count == self._length(body) else None
            choice = {"index": 0, "delta": {"content": text}, "finish_reason": ended, "token_ids": [count - 1]}
            yield _event({"choices": [choice]})
        yield _event({"choices": [], "usage": {"completion_tokens": count}})
        yield b"data: [DONE]\n\n"


@contextmanager
def measured(engine: Engine, guards: tuple[str, ...] = ("agla", "vote"), matcher_slow: float = 0.0) -> Iterator[str]:
    """Serve an engine behind the front.

    Yields:
        the server's URL.
    """
    with serving(MatcherStandIn(slow=matcher_slow).app()) as maskd, serving(engine.app()) as upstream:
        settings = FrontSettings(engine.names, guards, upstream=upstream, maskd_url=maskd)
        with serving(Front(settings, key="", metrics=FrontMetrics(CollectorRegistry()))) as url:
            for _ in range(2):  # what reads requests takes a second to start
                httpx.post(url + "/v1/chat/completions", content=b"x", trust_env=False, timeout=60)
            yield url


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"
