"""Get what a guard needs before the model may answer: the mask of each picture, or how far it supports each claim."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lvlm_guard.engine.method import Method
from lvlm_guard.errors import KnobError
from lvlm_guard.matching.vocabulary import TEMPLATE, claim_about
from lvlm_guard.methods.agla import AGLA
from lvlm_guard.methods.vote import Vote
from lvlm_guard.serve import knobs
from lvlm_guard.serve.engine.arguments import request_arguments, view_arguments
from lvlm_guard.serve.errors import MaskdError, Refused
from lvlm_guard.serve.front.canary import Chosen
from lvlm_guard.serve.front.metrics import FrontMetrics
from lvlm_guard.serve.front.reading import Seen
from lvlm_guard.serve.maskd.client import Mask, MaskdClient, Scores
from lvlm_guard.serve.vote.ballot import ballot_arguments, claims_of, kinds_of

AGAIN = 30.0
"""Seconds after which to ask again where the matcher service is broken, not busy."""

_Given = TypeVar("_Given", Mask, Scores)

log = logging.getLogger(__name__)

Matching = MaskdClient | Chosen
"""What is asked for masks and scores; they come checked. `hits` of the questions `asked` were answered from memory."""


@dataclass(frozen=True)
class Arguments:
    """What a guarded request is given.

    Args:
        fields: of its body, which only the front may author.
        version: of the matcher, "" where the guard needs none.
        claims: what is voted on, as `lvlm_guard.proof.Proof` has it.
        notes: on what the matcher could not look at.
    """

    fields: dict[str, Any]
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

    @property
    def known(self) -> Seen | None:
        """The matcher and its square, where they are known by now."""
        return None if self._matching is None else self._matching.known

    def claim(self, name: str) -> str:
        """Return the sentence that an object is there, as the matcher knows it best."""
        return claim_about(name, self._matching.template if isinstance(self._matching, MaskdClient) else TEMPLATE)

    async def support(
        self, check: str, views: Sequence[bytes], version: str, claims: Sequence[str]
    ) -> dict[str, float]:
        """Return how far pictures support claims, 0 to 1, as the matcher of a version says.

        Raises:
            MaskdError, Refused: as of `arguments`.
        """
        return (await self._support(check, self.service, version, views, claims))[0]

    async def arguments(
        self, method: Method, views: Sequence[bytes], question: str, version: str, chosen: Matching | None
    ) -> Arguments:
        """Return the arguments for one request.

        Args:
            method: that guards it.
            views: what the matcher sees of each of its pictures, a file each.
            question: that the matcher is asked about.
            version: of the matcher that the views are for.
            chosen: what answers in the matcher service's place; None: the service.

        Raises:
            MaskdError: the matcher service gave nothing usable.
            Refused: 400 or 413, it can't use picture or question.
        """
        if not isinstance(method, AGLA | Vote):
            return Arguments(_fields(method))
        service = chosen or self.service
        if isinstance(method, Vote):
            best, votes = await self._support("vote", service, version, views, claims_of(question))
            fields = {"vllm_xargs": ballot_arguments(method, question, best)}
            return Arguments(fields, votes[0].version, kinds_of(question), _notes(votes))
        given = await self._all("agla", service, version, [service.mask(view, question) for view in views])
        fields = _fields(method, [one.mask for one in given])
        return Arguments(fields, given[0].version, notes=_notes(given))

    async def _support(
        self, guard: str, service: Matching, version: str, views: Sequence[bytes], claims: Sequence[str]
    ) -> tuple[dict[str, float], list[Scores]]:
        given = await self._all(guard, service, version, [service.scores(view, claims) for view in views])
        # with several pictures a claim holds as well as in the one that supports it best
        return {claim: max(one.scores[claim] for one in given) for claim in claims}, given

    @property
    def service(self) -> Matching:
        """The matcher service; raises `MaskdError` where there is none."""
        if self._matching is None:
            raise MaskdError("The server was started without a matcher service.")
        return self._matching

    async def _all(
        self, guard: str, service: Matching, version: str, asks: Sequence[Coroutine[Any, Any, _Given]]
    ) -> list[_Given]:
        """Return all answers, of the version that the views are for."""
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
        if {one.version for one in given} != {version if service is self._matching else given[0].version}:
            raise MaskdError("The matcher changed in the middle of a request.", 1)
        return given


def unmatched(error: MaskdError) -> Refused:
    """Return what a client is told of a matcher service that failed, without its inner address."""
    log.warning("A guarded request was not answered: %s", error)
    again = error.retry_after or AGAIN
    none = "The matcher service gave nothing to guard or check this answer by, and no other one is given instead. "
    return Refused(503, f"{none}Ask again in {again:g} seconds.", again, "matcher")


def _fields(method: Method, masks: Sequence[str] = ()) -> dict[str, Any]:
    views = view_arguments(method, masks)
    return {"vllm_xargs": request_arguments(method)} | ({"mm_processor_kwargs": views} if views else {})


def _notes(given: Sequence[Mask | Scores]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.note for one in given if one.note))


def method_of(guard: str | None, xargs: object) -> Method | None:
    """Return a guard with the knobs that a request gives; None for no guard.

    Raises:
        Refused: 400, something else than a knob in its range is given.
    """
    given = {} if xargs is None else xargs
    if not isinstance(given, dict):
        raise Refused(400, "vllm_xargs is no object: give the guard's knobs, such as {'agla_alpha': 1.5}.")
    if guard is None:
        if given:
            raise Refused(
                400, f"vllm_xargs can't hold {min(given)!r:.80}: the plain model has no knobs, name a guarded one."
            )
        return None
    try:
        return knobs.method_of(guard, given, guard)
    except KnobError as error:
        raise Refused(400, f"vllm_xargs: {error}") from error
