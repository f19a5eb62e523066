"""Many asks at once, one batch at a time: a bounded queue before one worker thread.

All state lives on the event loop; the thread gets a list and gives a list. Whatever waits while a batch is in the
thread makes the next batch, so a lone ask never waits for company.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

from lvlm_guard.errors import GuardError
from lvlm_guard.matching.memory import Recent
from lvlm_guard.serve.errors import Refused
from lvlm_guard.serve.maskd.asks import Answer, Ask
from lvlm_guard.serve.maskd.metrics import Metrics
from lvlm_guard.serve.settings import Limits

Outcome = Answer | Exception

_ENTRY = 512  # bytes of a remembered answer besides its texts


def busy(reason: str, message: str, retry_after: float) -> Refused:
    """Return why a request can't be answered now; the reason is queue, deadline, memory or closing."""
    return Refused(503, message, retry_after, reason)


@dataclass(eq=False)
class _Pending:
    """An ask that has no answer yet, and how many requests wait for it."""

    answer: asyncio.Future[Outcome]
    waiters: int = 0


class Batcher:
    """Answers asks in batches, and remembers the answers; made on the event loop it serves.

    Args:
        work: answers a batch, in the worker thread; gives one outcome for each ask.
        limits: of the queue, the batch, the deadline, the memory.
        metrics: counts batches.
        broken: called when the matcher has failed `limits.failures` times and nothing else: it won't recover.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Ask]], list[Outcome]],
        limits: Limits,
        metrics: Metrics,
        broken: Callable[[], None] = lambda: None,
    ) -> None:
        self._work = work
        self._limits = limits
        self._metrics = metrics
        self._known: Recent[Ask, Answer] = Recent(limits.cache)  # of one matcher, so its version need not be in the key
        self._waiting: dict[Ask, _Pending] = {}  # first in, first out
        self._running: dict[Ask, _Pending] = {}
        self._awake = asyncio.Event()
        self._began: float | None = None
        self._last = 0.1  # seconds of the last batch
        self._closing = False
        self._broken = broken
        self._failed = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="matcher")
        self._loop = asyncio.create_task(self._run())

    async def ask(self, ask: Ask) -> Answer:
        """Return the answer; equal asks that meet here are answered once.

        Raises:
            Refused: 503, the queue is full, the deadline has passed, or the service is closing.
            Exception: what `work` gave for this ask.
        """
        if self._closing:
            raise self._ends()
        known = self._known.get(ask)
        if known is not None:
            self._metrics.hits.labels(ask.kind).inc()
            return known
        pending = self._waiting.get(ask) or self._running.get(ask)
        if pending is None:
            if len(self._waiting) >= self._limits.queue:
                raise busy("queue", f"{len(self._waiting)} requests wait already. Ask again later.", self.soon())
            self._metrics.misses.labels(ask.kind).inc()
            pending = self._waiting[ask] = _Pending(asyncio.get_running_loop().create_future())
            self._metrics.waiting.set(len(self._waiting))
            self._awake.set()
        else:
            self._metrics.joined.labels(ask.kind).inc()
        pending.waiters += 1
        try:
            async with asyncio.timeout(self._limits.deadline):
                outcome = await asyncio.shield(pending.answer)
        except TimeoutError:
            late = f"There was no answer within {self._limits.deadline:g} s. Ask again later."
            raise busy("deadline", late, self.soon()) from None
        finally:
            pending.waiters -= 1
            if not pending.waiters and self._waiting.get(ask) is pending:
                del self._waiting[ask]  # late, or its client is gone: the place in the queue is free
                self._metrics.waiting.set(len(self._waiting))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def soon(self) -> int:
        """Return after how many seconds what waits now will be answered, 1 or more."""
        batches = math.ceil((1 + len(self._waiting)) / self._limits.batch)
        return max(1, min(60, math.ceil(batches * self._last)))

    def busy_for(self) -> float:
        """Return for how many seconds the batch in the worker thread has been there, 0 where there is none."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    @property
    def waiting(self) -> int:
        """Asks in the queue."""
        return len(self._waiting)

    async def close(self) -> None:
        """Answer what waits that it closes, and return once the batch in the thread is done."""
        self._closing = True
        for pending in self._waiting.values():
            if not pending.answer.done():
                pending.answer.set_result(self._ends())
        self._awake.set()
        await self._loop
        self._thread.shutdown()

    @staticmethod
    def _ends() -> Refused:
        return busy("closing", "The matcher service is shutting down. Ask again later.", 1)

    async def _run(self) -> None:
        while not self._closing:
            await self._awake.wait()
            self._awake.clear()
            while self._waiting and not self._closing:
                await self._one_batch()

    async def _one_batch(self) -> None:
        batch = list(islice(self._waiting, self._limits.batch))
        self._running = {ask: self._waiting.pop(ask) for ask in batch}
        self._metrics.waiting.set(len(self._waiting))
        self._metrics.batch.observe(len(batch))
        self._began = time.monotonic()
        outcomes: list[Outcome]
        try:
            outcomes = await asyncio.get_running_loop().run_in_executor(self._thread, self._work, batch)
        except Exception as error:  # each request tells its client, and the next batch goes on
            outcomes = [error] * len(batch)
        self._last = self.busy_for()
        self._began = None
        self._metrics.matching.observe(self._last)
        ours = all(isinstance(outcome, Exception) and not isinstance(outcome, GuardError) for outcome in outcomes)
        self._failed = self._failed + 1 if ours else 0
        for (ask, pending), outcome in zip(self._running.items(), outcomes, strict=True):
            if isinstance(outcome, Answer):  # also where nobody waits any more: who asks again gets it at once
                size = len(outcome.text) + len(outcome.note) + sum(map(len, ask.texts)) + _ENTRY
                self._known.put(replace(ask, image=b""), outcome, size)
            pending.answer.set_result(outcome)
        self._running = {}
        if self._failed >= self._limits.failures:
            self._broken()
