"""The routes of the matcher service."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lvlm_guard.errors import ImageError, TextError, UnsupportedCallError
from lvlm_guard.matching import Matcher
from lvlm_guard.serve.errors import Refused, WireError
from lvlm_guard.serve.maskd.asks import Ask, Kind
from lvlm_guard.serve.maskd.batcher import Batcher
from lvlm_guard.serve.maskd.bodies import mask_ask, scores_ask
from lvlm_guard.serve.maskd.matching import Matching
from lvlm_guard.serve.maskd.metrics import Metrics
from lvlm_guard.serve.receiving import Bodies, Gone, while_there
from lvlm_guard.serve.settings import Limits

STUCK = 60.0
"""Seconds in one batch, or four deadlines if that is more, after which `/health` says that the matcher hangs."""

GONE = 499
"""Status in the metrics where the client went away."""

log = logging.getLogger(__name__)


class Service:
    """One matcher behind its routes.

    Args:
        load: loads the matcher; called once, when the server starts.
        limits: of requests, queue and memory.
    """

    def __init__(self, load: Callable[[], Matcher], limits: Limits) -> None:
        self._load = load
        self._limits = limits
        self._metrics = Metrics()
        self._bodies = Bodies(limits.body, limits.held, limits.reading, self._metrics.held.set)

    @asynccontextmanager
    async def running(self, _: Starlette) -> AsyncIterator[None]:
        """Load the matcher, and close the queue at the end."""
        matcher = self._load()
        self._version, self._side, self._template = matcher.version, matcher.side, matcher.template
        self._batcher = Batcher(Matching(matcher, self._limits), self._limits, self._metrics, _end)
        try:
            yield
        finally:
            await self._batcher.close()

    async def health(self, _: Request) -> Response:
        """Answer GET /health: 200 while the matcher answers."""
        busy = self._batcher.busy_for()
        stuck = busy > max(STUCK, 4 * self._limits.deadline)
        said: dict[str, object] = {
            "status": "stuck" if stuck else "ok",
            "version": self._version,
            "side": self._side,
            "template": self._template,
        }
        said |= {"waiting": self._batcher.waiting, "busy_seconds": round(busy, 3)}
        return JSONResponse(said, 503 if stuck else 200)

    async def metrics(self, _: Request) -> Response:
        """Answer GET /metrics."""
        text = await asyncio.to_thread(self._metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def answered(self, kind: Kind, parse: Callable[[bytes], Ask], request: Request) -> Response:
        """Answer POST /mask and /scores."""
        began = time.monotonic()
        held = ExitStack()
        try:
            read = await self._bodies.read(held, request.scope["headers"], request.receive)
            ask = await asyncio.to_thread(parse, read)
            del read
            answer = await while_there(request.receive, lambda: self._batcher.ask(ask))
            noted = {"note": answer.note} if answer.note else {}
            response: Response = JSONResponse({kind: answer.text, "version": self._version, **noted})
        except Gone:
            response = Response(status_code=GONE)
        except Exception as error:  # every failure is told to the client by its kind
            response = self._refusal(error)
        finally:
            held.close()
        self._metrics.answers.labels(kind, response.status_code).inc()
        self._metrics.seconds.labels(kind).observe(time.monotonic() - began)
        return response

    def _refusal(self, error: Exception) -> Response:
        if isinstance(error, Refused):
            if error.status == 503:
                self._metrics.busy.labels(error.reason).inc()
            return _error(error.status, error.message, error.retry_after)
        if isinstance(error, ImageError | TextError):
            return _error(400, str(error))
        if isinstance(error, UnsupportedCallError | WireError):
            return _error(501, str(error))
        log.error("The matcher failed.", exc_info=error)
        return _error(500, f"The matcher failed: {type(error).__name__}. Its log says why.")


def _end() -> None:
    """End this process at once: a device that failed once for all, as CUDA does, fails in every later call."""
    log.critical("The matcher fails at everything. This process ends; whoever watches it starts another one.")
    logging.shutdown()
    os._exit(1)


def _error(status: int, message: str, retry_after: float | None = None) -> Response:
    headers = {} if retry_after is None else {"Retry-After": str(max(1, round(retry_after)))}
    return JSONResponse({"error": {"message": message, "code": status}}, status, headers)


def create_app(load: Callable[[], Matcher], limits: Limits | None = None) -> Starlette:
    """Return the ASGI application; see `Service`."""
    service = Service(load, limits or Limits())
    routes = [
        Route("/mask", partial(service.answered, "mask", mask_ask), methods=["POST"]),
        Route("/scores", partial(service.answered, "scores", scores_ask), methods=["POST"]),
        Route("/health", service.health),
        Route("/metrics", service.metrics),
    ]
    return Starlette(routes=routes, lifespan=service.running)
