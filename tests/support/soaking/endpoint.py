"""A client that measures: one server, its names, its answers with times and proofs, its metrics."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx

from lvlm_guard.errors import UnprovedError
from lvlm_guard.proof import FIELD
from lvlm_guard.serve.errors import Refused, ServeError
from soaking import proof
from soaking.proof import Proof

KEY = "OPENAI_API_KEY"
"""Environment variable of the server's key, where it wants one."""

_DATA = "data: "


@dataclass(frozen=True)
class Chat:
    """One question about one picture.

    Args:
        name: of the model.
        guard: that the name stands for; None: the plain model.
        prompt: as a user writes it.
        picture: the file, PNG.
        tokens: longest answer.
        knobs: of the guard, where other than the defaults.
        full: go on to `tokens` tokens, whatever the model says.
        ids: ask for the answer's token ids too.
    """

    name: str
    guard: str | None
    prompt: str
    picture: bytes = field(repr=False)
    tokens: int
    knobs: Mapping[str, float] = field(default_factory=dict)
    full: bool = False
    ids: bool = False

    def body(self, stream: bool) -> bytes:
        """Return the request's body."""
        url = f"data:image/png;base64,{base64.b64encode(self.picture).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": self.prompt}]
        said: dict[str, Any] = {
            "model": self.name,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.tokens,
            "temperature": 0,
            "stream": stream,
        }
        if stream:
            said["stream_options"] = {"include_usage": True}
        if self.full:
            said["ignore_eos"] = True
        if self.ids:
            said["return_token_ids"] = True
        if self.knobs:
            said["vllm_xargs"] = {f"{self.guard}_{knob}": value for knob, value in self.knobs.items()}
        return json.dumps(said).encode()


@dataclass(frozen=True)
class Said:
    """An answer.

    Args:
        text: all of it, or what had come when the client left.
        tokens: of the answer, as the server counts; 0 where the client left.
        finish: "stop", "length"; "left": the client left.
        seconds: from sending to the end.
        first: seconds to the first text, to the end in an answer that came whole.
        proof: of the guard; None from a server without guards.
        ids: of its tokens, where they were asked for.
    """

    text: str
    tokens: int
    finish: str
    seconds: float
    first: float
    proof: Proof | None
    ids: tuple[int, ...] = ()


class Endpoint:
    """One server. Proxies named in the environment are not used: they would be measured too.

    Args:
        url: http://HOST:PORT, with or without /v1.
        guarded: whether its answers have to say which guard made them; an ordinary vLLM's may not.
        key: of the server; None: what `KEY` holds.
        timeout: seconds that nothing may come.
    """

    def __init__(self, url: str, *, guarded: bool = True, key: str | None = None, timeout: float = 120.0) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.guarded = guarded
        token = os.environ.get(KEY, "") if key is None else key
        try:
            self._http = httpx.AsyncClient(
                base_url=self.url,
                timeout=timeout,
                # vLLM closes connections that were idle for 5 s; asking on one at that moment is no fault of its
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=2),
                headers={"Authorization": f"Bearer {token}"} if token else {},
                trust_env=False,
            )
        except httpx.InvalidURL as error:
            raise ServeError(f"{url!r} is no address of a server: write it as http://HOST:8000.") from error

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def names(self) -> dict[str, str | None]:
        """Return the models' names, each with its guard, None for a plain one.

        Raises:
            ServeError: it is no such server: it can't be reached, has no names, or says nothing of guards.
            Refused: it answers with an error, 401 for a wrong key.
        """
        raw = await self._get("/v1/models")
        try:
            cards = json.loads(raw)["data"]
            if not self.guarded:
                return {str(card["id"]): None for card in cards}
            return {str(card["id"]): card[FIELD]["method"] for card in cards}
        except (KeyError, TypeError, ValueError):
            what = "says nothing of guards" if self.guarded else "lists no models"
            raise ServeError(
                f"{self.url}/v1/models {what}, so nothing can be compared there. Start one with `lvlm-guard serve`; "
                "an ordinary vLLM goes to --plain-server."
            ) from None

    async def version(self) -> str | None:
        """Return the version of its vLLM, None where it does not tell."""
        try:
            return str(json.loads(await self._get("/version"))["version"])
        except (Refused, KeyError, TypeError, ValueError):
            return None

    async def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Return the samples of /metrics by name and labels.

        Raises:
            ServeError, Refused: there are none.
        """
        from prometheus_client.parser import text_string_to_metric_families

        families = text_string_to_metric_families((await self._get("/metrics")).decode())
        return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}

    async def ask(self, chat: Chat, *, stream: bool = True, leave: float | None = None) -> Said:
        """Return the answer to a question.

        Args:
            chat: the question.
            stream: whether it comes in pieces.
            leave: seconds after which the client goes away; None: it stays.

        Raises:
            Refused: the server answers with an error.
            ServeError: it can't be reached, or its answer ends early.
            UnprovedError: the answer does not prove its guard.
        """
        raw = chat.body(stream)
        reading = _Reading(chat)
        try:
            async with asyncio.timeout(leave):
                await self._read(reading, raw, stream)
        except TimeoutError:
            # an answer that has begun is an answer: nobody may have read unguarded text
            made = reading.proof(self.guarded, whole=False)
            return reading.said("left", made)
        except httpx.HTTPError as error:
            raise ServeError(f"{self.url} can't be reached, or left off ({type(error).__name__}: {error}).") from error
        return reading.said(reading.finish, reading.proof(self.guarded, whole=True))

    async def _read(self, reading: _Reading, raw: bytes, stream: bool) -> None:
        headers = {"Content-Type": "application/json"}
        async with self._http.stream("POST", "/v1/chat/completions", content=raw, headers=headers) as response:
            reading.headers = response.headers
            if response.status_code != 200:
                raise _refusal(response, await response.aread())
            if not stream:
                reading.whole(await response.aread())
                return
            async for line in response.aiter_lines():
                if line.startswith(_DATA):
                    reading.piece(line[len(_DATA) :])
            if not reading.done:
                raise ServeError(f"{self.url}: a streamed answer ended before its end.")

    async def _get(self, path: str) -> bytes:
        try:
            response = await self._http.get(path)
        except (httpx.HTTPError, httpx.UnsupportedProtocol) as error:
            raise ServeError(
                f"{self.url} can't be reached ({type(error).__name__}: {error}). Is the server running?"
            ) from error
        if response.status_code != 200:
            raise _refusal(response, response.content)
        return response.content


class _Reading:
    """An answer as it comes."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._began = time.perf_counter()
        self.headers: Mapping[str, str] = {}
        self.text: list[str] = []
        self.fields: list[Any] = []
        self.ids: list[int] = []
        self.tokens, self.finish, self.first, self.end, self.done = 0, "", 0.0, 0.0, False

    def now(self) -> float:
        return time.perf_counter() - self._began

    def piece(self, data: str) -> None:
        if data == "[DONE]":
            self.done, self.end = True, self.now()
            return
        chunk = json.loads(data)
        if "error" in chunk:
            raise Refused(int(chunk["error"].get("code") or 500), str(chunk["error"].get("message"))[:500])
        self._seen(chunk)
        for choice in chunk["choices"]:
            text = choice["delta"].get("content") or ""
            self.text.append(text)
            self.ids += choice.get("token_ids") or ()
            self.finish = choice.get("finish_reason") or self.finish
            if not self.first and (text or self.finish):
                self.first = self.now()

    def whole(self, raw: bytes) -> None:
        self.first = self.end = self.now()
        answer = json.loads(raw)
        self._seen(answer)
        (choice,) = answer["choices"]
        self.text.append(choice["message"]["content"] or "")
        self.ids += choice.get("token_ids") or ()
        self.finish = choice["finish_reason"]

    def _seen(self, answer: dict[str, Any]) -> None:
        if FIELD in answer:
            self.fields.append(answer[FIELD])
        self.tokens = (answer.get("usage") or {}).get("completion_tokens", self.tokens)

    def said(self, finish: str, made: Proof | None) -> Said:
        now = self.now()
        text, ids = "".join(self.text), tuple(self.ids)
        return Said(text, self.tokens, finish, self.end or now, self.first or now, made, ids)

    def proof(self, guarded: bool, whole: bool) -> Proof | None:
        """Return what the answer proves; None where it has not begun, or the server has no guards."""
        name = self._chat.name
        if not guarded:
            if proof.in_header(name, self.headers) is not None or self.fields:
                raise UnprovedError(
                    f"{name!r} speaks of a guard, so its server is no ordinary vLLM: see --plain-server."
                )
            return None
        if not whole and not any(self.text):
            return None
        return proof.check(name, proof.expected(self._chat.guard, self._chat.knobs), self.headers, self.fields)


def _refusal(response: httpx.Response, raw: bytes) -> Refused:
    try:
        message = str(json.loads(raw)["error"]["message"])[:500]
    except (KeyError, TypeError, ValueError):
        message = raw[:200].decode(errors="replace")
    try:
        again = float(response.headers["retry-after"])
    except (KeyError, ValueError):
        again = None
    return Refused(response.status_code, message, again)
