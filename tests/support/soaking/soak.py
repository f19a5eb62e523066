"""Mixed traffic for a long time: every answer checked, memory and caches watched.

Guarded and plain names, several knobs, streamed and whole, new and known files, and clients that leave, a fixed number
in flight. A whole answer has to be the expected one to the letter; what a client saw before it left, its beginning.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from lvlm_guard.errors import UnprovedError
from lvlm_guard.serve.errors import Refused, ServeError
from soaking.endpoint import Chat, Endpoint, Said
from soaking.pool import Case
from soaking.processes import Processes, Sample, slopes
from soaking.reference import Expected

LEAVE, WHOLE, ANEW = 0.1, 0.4, 0.5  # shares of requests
MOST_PATIENCE = 0.4  # seconds after which a client that leaves has left
EVERY = 5.0  # seconds between samples of memory
SKIP = 120.0  # seconds in which memory may still grow to its size
SETTLE = 30.0  # seconds in which a server has to come to rest
_KEPT = 20  # sentences on what went wrong


@dataclass
class Found:
    """What a soak has seen.

    Args:
        answers: whole ones, by guard ("plain" for none), each compared.
        left: requests whose client left.
        wrong: answers other than expected.
        unguarded: answers that did not prove their guard.
        errors: by status; 0 for a lost connection.
        said: on what went wrong, the first of it.
        samples: of memory.
        rest: "before" and "after" -> requests running and waiting, share of the cache in use.
        seconds: it took.
    """

    answers: Counter[str] = field(default_factory=Counter)
    left: int = 0
    wrong: int = 0
    unguarded: int = 0
    errors: Counter[int] = field(default_factory=Counter)
    said: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    rest: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Return whether nothing was wrong or unguarded, and the server came to rest with empty caches."""
        resting = self.rest.get("after")
        return not self.wrong and not self.unguarded and bool(resting) and not any((resting or {"": 1}).values())

    def rows(self) -> list[dict[str, Any]]:
        """Return the figures in long form."""
        skip = min(SKIP, self.seconds / 3)
        found: list[dict[str, Any]] = [
            {"metric": "answers", "method": guard, "value": count} for guard, count in sorted(self.answers.items())
        ]
        found += [{"metric": name, "value": getattr(self, name)} for name in ("left", "wrong", "unguarded", "seconds")]
        found += [{"metric": "errors", "status": status, "value": n} for status, n in sorted(self.errors.items())]
        for role, slope in slopes(self.samples, skip).items():
            last = self.samples[-1].mib
            held = sum(last.values()) if role == "all" else last.get(role)
            found.append({"metric": "memory_mib_per_min", "process": role, "value": slope, "left_out_s": skip})
            found.append({"metric": "memory_mib", "process": role, "value": held})
        for when, values in self.rest.items():
            found += [{"metric": name, "when": when, "value": value} for name, value in values.items()]
        return found

    def tell(self, sentence: str) -> None:
        """Keep a sentence on what went wrong."""
        if len(self.said) < _KEPT:
            self.said.append(sentence)


class Soak:
    """Asks a server for a long time.

    Args:
        endpoint: the server.
        cases: what is asked.
        at_once: requests in flight.
        processes: whose memory is watched; None: none.
        seed: of what is asked when.
        tick: told of seconds that have passed.
        heard: told of each right answer that came whole: its question, when it was asked (monotonic), how long it took.
        patience: seconds that a client waits after an error, at most, whatever the server says.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        cases: Sequence[Case],
        *,
        at_once: int = 8,
        processes: Processes | None = None,
        seed: int = 0,
        tick: Callable[[int], object] = lambda count: None,
        heard: Callable[[Chat, float, float], object] = lambda chat, asked, seconds: None,
        patience: float = 5.0,
    ) -> None:
        self._endpoint, self._cases, self._at_once, self._processes = endpoint, cases, at_once, processes
        self._random, self._tick, self._heard, self._patience = random.Random(seed), tick, heard, patience
        self._number = 0
        self.found = Found()

    async def run(self, seconds: float, beside: Callable[[], AbstractAsyncContextManager[None]] = nullcontext) -> None:
        """Ask until the time is over; what was seen is in `found`, however this ends.

        Args:
            seconds: to ask.
            beside: what goes on meanwhile, and has ended before the server has to come to rest.

        Raises:
            ServeError: the server can't be reached at the start, or has no metrics.
        """
        self.found.rest["before"] = await self._resting()
        began = time.monotonic()
        watching = asyncio.create_task(self._watch(began))
        try:
            async with beside():
                await self.ask_while(lambda: time.monotonic() < began + seconds)
        finally:
            watching.cancel()
            self.found.seconds += time.monotonic() - began
        self.found.rest["after"] = await self._resting()

    async def ask_while(self, goes_on: Callable[[], bool]) -> None:
        """Ask as long as something holds, whether the server is there or not."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._at_once):
                group.create_task(self._client(goes_on))

    async def _client(self, goes_on: Callable[[], bool]) -> None:
        while goes_on():
            case = self._random.choice(self._cases)
            self._number += 1
            chat = case.anew(self._number) if self._random.random() < ANEW else case.chat
            stream = self._random.random() > WHOLE
            leave = self._random.uniform(0, MOST_PATIENCE) if self._random.random() < LEAVE else None
            asked = time.monotonic()
            try:
                said = await self._endpoint.ask(chat, stream=stream, leave=leave)
                if self._compare(case, said) and said.finish != "left":
                    self._heard(chat, asked, said.seconds)
            except UnprovedError as error:
                self.found.unguarded += 1
                self.found.tell(str(error))
            except Refused as error:
                self.found.errors[error.status] += 1
                self.found.tell(f"{chat.name}: {error.status} {error.message}")
                await asyncio.sleep(min(error.retry_after or 0.1, self._patience))
            except ServeError as error:
                self.found.errors[0] += 1
                self.found.tell(f"{chat.name}: {error}")
                await asyncio.sleep(min(0.5, self._patience))

    def _compare(self, case: Case, said: Said) -> bool:
        """Count an answer; returns whether it is the right one."""
        if said.finish == "left":
            self.found.left += 1
            right = case.expected is None or case.expected.begins(said.text, said.ids)
        else:
            self.found.answers[case.chat.guard or "plain"] += 1
            made = Expected(said.text.strip(), said.ids, said.finish)
            case.expected = case.expected or made
            right = made == case.expected
        if not right and case.expected is not None:
            self._wrong(case.chat, said, case.expected)
        return right

    def _wrong(self, chat: Chat, said: Said, expected: Expected) -> None:
        self.found.wrong += 1
        self.found.tell(f"{chat!r:.300} was answered {said!r:.300}, not {expected!r:.300}")

    async def _watch(self, began: float) -> None:
        told = 0
        while True:
            if self._processes is not None:
                self.found.samples.append(await asyncio.to_thread(self._processes.sample))
            passed = int(time.monotonic() - began)
            self._tick(passed - told)
            told = passed
            await asyncio.sleep(EVERY)

    async def _resting(self) -> dict[str, float]:
        """Return what the server holds once nothing runs; what it holds after `SETTLE` seconds where something does."""
        end = time.monotonic() + SETTLE
        while True:
            held = await at_rest(self._endpoint)
            if not any(held.values()) or time.monotonic() > end:
                return held
            await asyncio.sleep(0.2)


async def at_rest(endpoint: Endpoint) -> dict[str, float]:
    """Return what a server holds: requests running and waiting, and the share of the KV cache in use, over all engines.

    Raises:
        ServeError, Refused: it does not tell.
    """
    names = {
        "requests_running": "vllm:num_requests_running",
        "requests_waiting": "vllm:num_requests_waiting",
        "kv_cache_usage": "vllm:kv_cache_usage_perc",
    }
    metrics = await endpoint.metrics()
    found = {}
    for shown, name in names.items():
        values = [value for (sample, _), value in metrics.items() if sample == name]
        if not values:
            raise ServeError(f"{endpoint.url}/metrics has no {name}: this is no vLLM with statistics switched on.")
        found[shown] = sum(values)
    return found
