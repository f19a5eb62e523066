"""Attacks beside a soak: what once held a server up, or got something past its front, again and again."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
from front_attacks import of_frames

from lvlm_guard.errors import UnprovedError
from lvlm_guard.proof import FIELD
from soaking import proof
from soaking.pool import Case

SOCKETS = 128  # that send a letter a second
PAUSE = 0.25  # seconds between two attacks of one kind
HUNG, WELL = 3.0, 12.0  # seconds that the matcher hangs, and that it does not

FORGED = {
    "X-Vllm-Priority": "-5", "X-data-parallel-rank": "1", "X-Session-ID": "other", "X-Request-Id": "other",
    "X-AGLA": "on; alpha=2; beta=0.5; mask=forged", "X-VOTE": "off", "X-LVLM-Guard-Canary": "x 1.0",
}  # fmt: skip


class Attacks:
    """Who attacks one server.

    Args:
        url: of the server.
        cases: questions, for attacks that have to look like one.
        matcher: finds the process of the matcher, which is made to hang.
        seed: of what is sent.
    """

    def __init__(self, url: str, cases: Sequence[Case], matcher: Callable[[], psutil.Process], seed: int = 0) -> None:
        self._url, self._matcher, self._random = url, matcher, random.Random(seed)
        self._cases = cases
        self._bomb = of_frames(4000)
        self.made: Counter[str] = Counter()
        self.through: list[str] = []  # what got past the front

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Attack as long as the block lasts."""
        async with httpx.AsyncClient(base_url=self._url, timeout=60, trust_env=False) as http:
            kinds = {
                "blanks": self._blanks,
                "header bomb": self._header_bomb,
                "forged": self._forged,
                "fields": self._fields,
            }
            tasks = [asyncio.create_task(self._again(kind, http, one)) for kind, one in kinds.items()]
            tasks += [asyncio.create_task(self._trickle()) for _ in range(SOCKETS)]
            tasks.append(asyncio.create_task(self._hang()))
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                ended = await asyncio.gather(*tasks, return_exceptions=True)
        for error in ended:
            if not isinstance(error, asyncio.CancelledError):
                raise RuntimeError("an attacker gave up") from error

    async def _again(self, kind: str, http: httpx.AsyncClient, attack: Callable[[httpx.AsyncClient], Any]) -> None:
        while True:
            with suppress(httpx.HTTPError):
                await attack(http)
            self.made[kind] += 1
            await asyncio.sleep(PAUSE)

    async def _post(self, http: httpx.AsyncClient, raw: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
        said = {"Content-Type": "application/json", **(headers or {})}
        return await http.post("/v1/chat/completions", content=raw, headers=said)

    async def _blanks(self, http: httpx.AsyncClient) -> None:
        """Send a text that a careless pattern takes minutes to read."""
        blanks = self._random.choice((" " * 100_000, " " * 30_000, "\n" * 30_000, " \n" * 15_000))
        case = self._random.choice(self._cases)
        said = json.loads(case.chat.body(False))
        said["messages"][0]["content"][1]["text"] = f"a{blanks}b"
        answer = await self._post(http, json.dumps(said).encode())
        self._expect("blanks", answer, (200, 400, 413, 503))

    async def _header_bomb(self, http: httpx.AsyncClient) -> None:
        """Send a TIFF whose header names 4,000 frames."""
        chat = self._random.choice(self._cases).chat
        raw = type(chat)(**{**vars(chat), "picture": self._bomb}).body(False)
        self._expect("header bomb", await self._post(http, raw), (400, 503))

    async def _forged(self, http: httpx.AsyncClient) -> None:
        """Ask with headers that say what the front alone may say."""
        case = self._random.choice(self._cases)
        chat = case.anew(self._random.randrange(1 << 30))
        answer = await self._post(http, chat.body(False), FORGED)
        if answer.status_code == 200:
            told = answer.json()
            try:
                proof.check(chat.name, proof.expected(chat.guard, chat.knobs), answer.headers, [told[FIELD]])
            except (UnprovedError, LookupError) as error:
                self.through.append(f"forged headers: {error}")
            text = told["choices"][0]["message"]["content"].strip()
            if case.expected is not None and text != case.expected.text:
                self.through.append(f"forged headers: {text!r:.200} instead of {case.expected.text!r:.200}")
        else:
            self._expect("forged", answer, (500, 503))

    async def _fields(self, http: httpx.AsyncClient) -> None:
        """Ask with fields that would act behind the guard."""
        said = json.loads(self._random.choice(self._cases).chat.body(False))
        wrong: dict[str, Any] = self._random.choice(
            [{"vllm_xargs": {"guard": "agla"}}, {"mm_processor_kwargs": {"guard_mask": "x"}}, {"use_beam_search": True}]
        )
        self._expect(f"fields {wrong}", await self._post(http, json.dumps(said | wrong).encode()), (400, 503))

    def _expect(self, kind: str, answer: httpx.Response, statuses: tuple[int, ...]) -> None:
        if answer.status_code not in statuses:
            self.through.append(f"{kind}: {answer.status_code} {answer.text[:200]}")

    async def _trickle(self) -> None:
        """Send a request a letter at a time, for ever."""
        host, _, port = self._url.removeprefix("http://").partition(":")
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection(host, int(port))
                try:
                    self.made["trickling sockets"] += 1
                    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
                    while not writer.is_closing():
                        await asyncio.sleep(1)
                        writer.write(b" ")
                        await writer.drain()
                finally:
                    writer.close()
            await asyncio.sleep(PAUSE)

    async def _hang(self) -> None:
        """Stop the matcher for a while, again and again."""
        while True:
            await asyncio.sleep(WELL)
            with suppress(psutil.NoSuchProcess):
                matcher = self._matcher()
                matcher.suspend()
                self.made["hung matcher"] += 1
                try:
                    await asyncio.sleep(HUNG)
                finally:
                    matcher.resume()
