"""The front before a model that nobody guards: any OpenAI-compatible endpoint, whose finished answers are checked.

`NAME` passes through, `NAME-verify` says of each object in an answer whether the picture supports it, `NAME-best` is
the best of several answers. What can't be checked is an error: nothing under these names passes unchecked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Send

from lvlm_guard import __version__
from lvlm_guard.proof import CHECK, FIELD, header_of
from lvlm_guard.serve.errors import MaskdError, Refused
from lvlm_guard.serve.front.answers import Header, dumped
from lvlm_guard.serve.front.app import Front, reply, whole
from lvlm_guard.serve.front.guards import method_of, unmatched
from lvlm_guard.serve.front.reading import with_fields
from lvlm_guard.serve.front.requests import ANSWERS, Wanted
from lvlm_guard.serve.front.routes import CHAT, METRICS, MODELS, READY
from lvlm_guard.serve.front.settings import FrontSettings
from lvlm_guard.serve.front.upstream import EVENTS, Once, kind_of, passed_on, shown
from lvlm_guard.serve.front.verdicts import Pictures, ranked, text_of

_DONE = "[DONE]"
_STREAM = (b"content-type", f"{EVENTS}; charset=utf-8".encode())


class Passed(Exception):
    """The upstream's own error, on its way to the client."""

    def __init__(self, status: int, headers: list[Header], raw: bytes) -> None:
        super().__init__(status)
        self.status, self.headers, self.raw = status, headers, raw


class CheckingFront(Front):
    """An ASGI app; see `Front`, whose settings name checks and no guards."""

    behind = "upstream"

    async def _told(self, path: str) -> tuple[int, list[Header], bytes]:
        if path == METRICS:
            return await self._metrics()
        if path not in (READY, MODELS):
            return 200, [(b"content-type", b"application/json")], json.dumps({"version": __version__}).encode()
        if path == READY:
            await self._guards.service.health()
        answer = await self._upstream.get(MODELS)
        if answer.status_code != 200:
            raise Refused(503, f"The upstream answers {answer.status_code} to {MODELS}.", 5, "engine")
        try:
            listed = answer.json()["data"]
            cards = {card["id"]: card for card in listed}
        except (ValueError, KeyError, TypeError) as wrong:
            raise Refused(502, "The upstream's list of models can't be read.", None, "engine") from wrong
        data = [
            {"object": "model", "created": 0, "owned_by": "upstream", **cards.get(plain, {}), "id": full}
            | {FIELD: {"method": None, "check": check}}
            for plain in self._names.plain
            for full, check in self._names.guarded(plain).items()
        ]
        raw = json.dumps({"object": "list", "data": data}).encode()
        return 200, [(b"content-type", b"application/json")], raw

    async def _chat(self, headers: Sequence[Header], raw: list[bytes], release: Callable[[], None], send: Send) -> None:
        read, version, _ = await self._read(raw, headers)
        check, passed = self._names.meant(read.name)[1], passed_on(headers)
        raw.clear()
        try:
            if check is None:
                method_of(None, read.knobs)
                async with self._upstream.post(CHAT, Once(read.body, release), passed) as answer:
                    await self._through(await self._well(answer), send)
            else:
                pictures = Pictures(self._guards, check, read.views, version)
                with self._place("guarded"):
                    await pictures.look()
                if isinstance(read.knobs, Wanted):
                    await self._best(read.name, read.body, read.knobs, pictures, passed, send)
                else:
                    async with self._upstream.post(CHAT, Once(read.body, release), passed) as answer:
                        await self._verified(read.name, await self._well(answer), pictures, send)
            self.metrics.answered.labels(check or "none").inc()
        except Passed as it:
            self.metrics.refused.labels(str(it.status), "engine").inc()
            await reply(send, it.status, [*it.headers, *self._refused], it.raw)

    async def _well(self, answer: httpx.Response) -> httpx.Response:
        """Return an answer that is one; its errors go to the client as they are, but for what concerns our key."""
        status = answer.status_code
        if status == 200:
            return answer
        if status == 401 or status < 400:
            why = "does not take this server's key" if status == 401 else f"answers {status}, which is no answer"
            raise Refused(502, f"The upstream {why}: its operator has to look.", None, "engine")
        raw = await whole(answer)
        raise Passed(status, shown(answer), self._hidden(raw))

    def _hidden(self, raw: bytes) -> bytes:
        """Return what the upstream says without our key, which some repeat."""
        key = self.settings.upstream_key.encode()
        return raw.replace(key, b"***") if key else raw

    async def _through(self, answer: httpx.Response, send: Send) -> None:
        """Pass an answer on as it is."""
        off = [*shown(answer), (CHECK.encode(), b"off")]
        if kind_of(answer) == EVENTS:
            await self._stream(send, off, answer.aiter_bytes())
        else:
            await reply(send, 200, off, await whole(answer))

    async def _verified(self, name: str, answer: httpx.Response, pictures: Pictures, send: Send) -> None:
        """Send an answer with verdicts on what it names."""
        said = (CHECK.encode(), f"verify; scores={pictures.version}".encode())
        if kind_of(answer) == EVENTS:
            headers = [_STREAM, (b"cache-control", b"no-cache"), said]
            return await self._stream(send, headers, self._or_why(_checked(answer, name, pictures)))
        body = await _object(answer)
        texts = [text_of(choice["message"]) for choice in body["choices"]]
        body |= {"model": name} | pictures.field(await pictures.verdicts(texts))
        return await reply(send, 200, [*shown(answer), said], dumped(body))

    async def _or_why(self, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            async for event in events:
                yield event
        except (MaskdError, Refused, httpx.HTTPError, LookupError, RecursionError, TypeError, ValueError) as wrong:
            known = unmatched(wrong) if isinstance(wrong, MaskdError) else wrong
            why = known.message if isinstance(known, Refused) else "it broke off, or can't be read."
            raise Refused(502, f"The answer was not checked: {self._hidden(why.encode()).decode()}") from wrong

    async def _best(
        self, name: str, body: bytes, wanted: Wanted, pictures: Pictures, headers: dict[str, str], send: Send
    ) -> None:
        """Send the best of several answers."""
        if wanted.answers > (most := self.settings.most_answers):
            raise Refused(400, f"{ANSWERS} is {wanted.answers}: {most} answers at most are asked for here.")
        answers = await self._several(body, wanted, headers)
        choices = [(whose, choice) for whose, answer in enumerate(answers) for choice in answer["choices"]]
        checked = await pictures.verdicts([text_of(choice["message"]) for _, choice in choices])
        best, rows = ranked([choice for _, choice in choices], checked)
        whose, choice = choices[best]
        choice |= {"index": 0} | ({} if wanted.logprobs else {"logprobs": None})
        told = {**answers[whose], "model": name, "choices": [choice], "usage": _summed(answers)}
        told |= pictures.field([checked[best]], candidates=rows)
        said = (CHECK.encode(), f"best; scores={pictures.version}; answers={len(choices)}".encode())
        if wanted.stream:
            return await reply(send, 200, [_STREAM, said], _as_stream(told, wanted.usage))
        return await reply(send, 200, [(b"content-type", b"application/json"), said], dumped(told))

    async def _several(self, body: bytes, wanted: Wanted, headers: dict[str, str]) -> list[dict[str, Any]]:
        """Return answers with as many choices as are wanted: of one request, or of several where that is not taken."""
        many = {} if wanted.answers == 1 else {"n": wanted.answers}
        seed = {} if wanted.seed is None else {"seed": wanted.seed}
        told = with_fields(body, {"logprobs": True})
        try:
            answers = [await self._one(with_fields(told, many | seed), headers)]
            body = told
        except Passed as passed:
            if passed.status not in (400, 422):  # not every model gives several answers, or tells log-probabilities
                raise
            answers, body = [], told if wanted.logprobs else body
        left = range(sum(len(answer["choices"]) for answer in answers), wanted.answers)
        try:
            async with asyncio.TaskGroup() as group:
                more = [seed and {"seed": seed["seed"] + number} for number in left]
                asks = [group.create_task(self._one(with_fields(body, one), headers)) for one in more]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        return answers + [ask.result() for ask in asks]

    async def _one(self, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
        async with self._upstream.post(CHAT, Once(body), headers) as answer:
            return await _object(await self._well(answer))


async def _checked(answer: httpx.Response, name: str, pictures: Pictures) -> AsyncIterator[bytes]:
    """Yield the events of a streamed answer, the verdicts in the last one before the end."""
    texts: dict[int, str] = {}
    last: dict[str, Any] = {"object": "chat.completion.chunk", "choices": []}
    held: dict[str, Any] | None = None
    first = True
    async for data in _events(answer):
        if data == _DONE:
            break
        chunk = json.loads(data)
        if "choices" not in chunk:
            raise Refused(502, f"the upstream says {data:.500}", None, "engine")
        if held is not None:
            yield _event(held)
            held = None
        chunk["model"] = name
        for choice in chunk["choices"]:
            number = choice["index"]
            texts[number] = texts.get(number, "") + text_of(choice["delta"])
        last = {**chunk, "choices": [], "usage": None}
        if first:
            chunk |= pictures.field()
            first = False
        if not chunk["choices"] or any(choice.get("finish_reason") for choice in chunk["choices"]):
            held = chunk
        else:
            yield _event(chunk)
    verdicts = await pictures.verdicts([texts.get(i, "") for i in range(max(texts, default=-1) + 1)])
    yield _event((last if held is None else held) | pictures.field(verdicts))
    yield f"data: {_DONE}\n\n".encode()


async def _events(answer: httpx.Response) -> AsyncIterator[str]:
    """Yield the data of server-sent events, whether their lines end as Unix's or as Windows' do."""
    rest, data = b"", []
    async for piece in answer.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in map(bytes.rstrip, lines):
            if line.startswith(b"data:"):
                data.append(line[5:].decode())
            elif not line and data:
                yield "\n".join(data).strip()
                data.clear()
    if rest or data:
        raise ValueError("the last event has no end")


async def _object(answer: httpx.Response) -> dict[str, Any]:
    """Return a whole answer that has choices.

    Raises:
        Refused: 502, it is something else.
    """
    try:
        body = json.loads(await whole(answer))
        if not [text_of(choice["message"]) for choice in body["choices"]]:
            raise ValueError("no choice")
    except (ValueError, KeyError, TypeError, RecursionError) as wrong:
        message = "The upstream's answer can't be read, so it can't be checked, and is not given."
        raise Refused(502, message, None, "engine") from wrong
    return body  # type: ignore[no-any-return]  # it has keys


def _summed(answers: Sequence[dict[str, Any]]) -> dict[str, int] | None:
    """Return what all answers cost."""
    each = [answer.get("usage") or {} for answer in answers]
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {name: sum(int(one.get(name) or 0) for one in each) for name in names} if any(each) else None


def _as_stream(told: dict[str, Any], usage: bool) -> bytes:
    """Return a whole answer as the events of a stream."""
    (choice,) = told["choices"]
    message = dict(choice["message"])
    if message.get("tool_calls"):
        message["tool_calls"] = [{"index": i, **call} for i, call in enumerate(message["tool_calls"])]
    common = {**told, "object": "chat.completion.chunk", "usage": None}
    reason, logprobs = choice.get("finish_reason"), choice.get("logprobs")
    events = [
        {**common, "choices": [{"index": 0, "delta": message, "finish_reason": None, "logprobs": logprobs}]},
        {**common, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]},
    ]
    if usage:
        events.append({**common, "choices": [], "usage": told["usage"]})
    return b"".join(map(_event, events)) + f"data: {_DONE}\n\n".encode()


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + dumped(chunk) + b"\n\n"


def create() -> CORSMiddleware:
    """Return the app of a front's process, whose settings are in the environment."""
    settings = FrontSettings.from_environment()
    return CORSMiddleware(
        (CheckingFront if settings.checks else Front)(settings),
        allow_origins=settings.origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=[*map(header_of, settings.guards), *[CHECK][: len(settings.checks)], "retry-after"],
    )
