"""Get what a guard needs before the model may answer: the mask of each picture, or how far it supports each claim."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from lvlm_guard.engine.method import Method
from lvlm_guard.methods.agla import AGLA
from lvlm_guard.methods.vote import Vote
from lvlm_guard.serve.engine.arguments import request_arguments, view_arguments
from lvlm_guard.serve.errors import MaskdError, Refused
from lvlm_guard.serve.front.metrics import FrontMetrics
from lvlm_guard.serve.front.pictures import Picture
from lvlm_guard.serve.maskd.client import Mask, Scores
from lvlm_guard.serve.vote.ballot import ballot_arguments, claims_of, kinds_of

AGAIN = 30.0
"""Seconds after which to ask again where the matcher service is broken, not busy."""

_Given = TypeVar("_Given", Mask, Scores)

log = logging.getLogger(__name__)


class Matching(Protocol):
    """What of `lvlm_guard.serve.maskd.client.MaskdClient` is used; masks and scores come checked.

    `hits` of the questions `asked` were answered from memory.
    """

    hits: int
    asked: int

    async def mask(self, image: bytes, question: str) -> Mask:
        """Return the mask of a picture for a question; raise MaskdError or Refused."""
        ...

    async def scores(self, image: bytes, claims: Sequence[str]) -> Scores:
        """Return how far a picture supports each claim; raise MaskdError or Refused."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


@dataclass(frozen=True)
class Arguments:
    """The engine's arguments of a guarded request.

    Args:
        xargs: its `vllm_xargs`.
        views: its `mm_processor_kwargs`; empty: none.
        version: of the matcher, "" where the guard needs none.
        claims: what is voted on, of `lvlm_guard.proof.KINDS`.
        notes: on what the matcher could not look at.
    """

    xargs: dict[str, Any]
    views: dict[str, Any]
    version: str = ""
    claims: str = ""
    notes: tuple[str, ...] = ()


class Guards:
    """Authors the arguments of guarded requests.

    Args:
        matching: the matcher service; None where no guard needs it.
        metrics: where cache hits and times are counted.
    """

    def __init__(self, matching: Matching | None, metrics: FrontMetrics) -> None:
        self._matching = matching
        self._metrics = metrics
        self._hits = self._asked = 0

    async def aclose(self) -> None:
        """Close the connections to the matcher service."""
        if self._matching is not None:
            await self._matching.aclose()

    async def arguments(
        self, method: Method, pictures: Sequence[Picture], question: str, chosen: Matching | None = None
    ) -> Arguments:
        """Return the arguments for one request.

        Args:
            method: that guards it.
            pictures: of the request.
            question: that the matcher is asked about.
            chosen: what answers in the matcher service's place; None: the service.

        Raises:
            Refused: 503, the matcher service gave nothing usable; 400 or 413, it can't use picture or question.
        """
        try:
            if isinstance(method, Vote):
                return await self._votes(method, pictures, question, chosen or self._service())
            if not isinstance(method, AGLA):
                return Arguments(dict(request_arguments(method)), view_arguments(method))
            service = chosen or self._service()
            given = await self._all("agla", service, [service.mask(picture.data, question) for picture in pictures])
            views = view_arguments(method, [one.mask for one in given])
            return Arguments(dict(request_arguments(method)), views, given[0].version, notes=_notes(given))
        except MaskdError as error:
            log.warning("A guarded request was not answered: %s", error)  # the client is not told inner addresses
            again = error.retry_after or AGAIN
            raise Refused(
                503,
                "The matcher service gave nothing that guards this answer, and an unguarded one is not given instead. "
                f"Ask again in {again:g} seconds.",
                again,
                "matcher",
            ) from error

    async def _votes(self, vote: Vote, pictures: Sequence[Picture], question: str, service: Matching) -> Arguments:
        claims = claims_of(question)
        given = await self._all("vote", service, [service.scores(picture.data, claims) for picture in pictures])
        # with several pictures a claim holds as well as in the one that supports it best
        best = {claim: max(one.scores[claim] for one in given) for claim in claims}
        xargs = ballot_arguments(vote, question, best)
        return Arguments(xargs, {}, given[0].version, kinds_of(question), _notes(given))

    def _service(self) -> Matching:
        if self._matching is None:
            raise MaskdError("The server was started without a matcher service.")
        return self._matching

    async def _all(self, guard: str, service: Matching, asks: Sequence[Coroutine[Any, Any, _Given]]) -> list[_Given]:
        """Return all answers, of one version."""
        began = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ask) for ask in asks]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        finally:
            if service is self._matching:
                self._metrics.matched.labels(guard).observe(time.perf_counter() - began)
                hits, asked = service.hits, service.asked
                self._metrics.cached.inc(hits - self._hits)
                self._metrics.asked.inc(asked - self._asked)
                self._hits, self._asked = hits, asked
        given = [task.result() for task in tasks]
        if len({one.version for one in given}) != 1:
            raise MaskdError("The matcher changed between the pictures of one request.", 1)
        return given


def _notes(given: Sequence[Mask | Scores]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.note for one in given if one.note))
