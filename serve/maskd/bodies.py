"""A request's body, read within limits, and what it asks."""

from __future__ import annotations

import asyncio
import binascii
import json
from typing import Any

from starlette.requests import Request

from lvlm_guard.serve.errors import Refused
from lvlm_guard.serve.maskd.asks import MOST_TEXT, Limits
from lvlm_guard.serve.maskd.batcher import Busy
from lvlm_guard.serve.maskd.metrics import Metrics
from lvlm_guard.serve.wire import MOST_SCORES


class Held:
    """How many bytes of requests are in memory, all together.

    Args:
        most: bytes.
        metrics: shows them.
    """

    def __init__(self, most: int, metrics: Metrics) -> None:
        self._most = most
        self._metrics = metrics
        self._now = 0

    def add(self, size: int) -> None:
        """Count bytes in.

        Raises:
            Busy: there are too many; none are counted then.
        """
        if self._now + size > self._most:
            raise Busy("memory", "The requests that wait fill the memory set aside for them. Ask again later.", 1)
        self._now += size
        self._metrics.held.set(self._now)

    def drop(self, size: int) -> None:
        """Count bytes out."""
        self._now -= size
        self._metrics.held.set(self._now)


class Body:
    """Reads one request's body; the bytes it holds count until `close`.

    Args:
        request: the request.
        limits: of its size and time.
        held: counts its bytes.
    """

    def __init__(self, request: Request, limits: Limits, held: Held) -> None:
        self._request = request
        self._limits = limits
        self._held = held
        self._size = 0

    async def read(self) -> bytes:
        """Return the body.

        Raises:
            Refused: it is too large (413), or comes too slowly (408).
            Busy: requests fill the memory.
            ClientDisconnect: the client went away.
        """
        announced = self._request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._limits.body:
            raise self._too_large()
        parts = []
        try:
            async with asyncio.timeout(self._limits.reading):
                async for part in self._request.stream():
                    if self._size + len(part) > self._limits.body:
                        raise self._too_large()
                    self._held.add(len(part))
                    self._size += len(part)
                    parts.append(part)
        except TimeoutError:
            raise Refused(
                408, f"The request did not arrive within {self._limits.reading:g} s. Send it again."
            ) from None
        return b"".join(parts)

    def close(self) -> None:
        """Let go of the bytes."""
        self._held.drop(self._size)
        self._size = 0

    def _too_large(self) -> Refused:
        return Refused(
            413,
            f"The request has more than {self._limits.body:,} bytes. Send a smaller picture: matchers see 384 x 384.",
        )


async def gone(request: Request) -> None:
    """Return when the client has gone away; for a request whose body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def parse_mask(body: bytes) -> tuple[bytes, str]:
    """Return the picture's file and the question of a request for a mask.

    Raises:
        Refused: the body is anything else; status 400.
    """
    fields = _fields(body, {"image", "question"})
    return _image(fields), _text(fields.get("question"), "question")


def parse_scores(body: bytes) -> tuple[bytes, str | tuple[str, ...]]:
    """Return the picture's file, and the question or the claims, of a request for scores.

    Raises:
        Refused: the body is anything else; status 400.
    """
    fields = _fields(body, {"image", "question", "claims"})
    image = _image(fields)
    if ("question" in fields) == ("claims" in fields):
        raise Refused(400, "Give either 'claims', a list of sentences, or 'question', whose claims are looked for.")
    if "question" in fields:
        return image, _text(fields["question"], "question")
    claims = fields["claims"]
    if not isinstance(claims, list) or not 1 <= len(claims) <= MOST_SCORES:
        raise Refused(400, f"'claims' is to be a list of 1 to {MOST_SCORES} sentences.")
    return image, tuple(dict.fromkeys(_text(claim, "claims") for claim in claims))


def _fields(body: bytes, known: set[str]) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body is no JSON ({error}).") from error
    if not isinstance(fields, dict):
        raise Refused(400, f"The body is a JSON {type(fields).__name__}, no object with {', '.join(sorted(known))}.")
    unknown = sorted(set(fields) - known)
    if unknown:
        raise Refused(400, f"There is no field {unknown[0][:80]!r}; there are {', '.join(sorted(known))}.")
    return fields


def _image(fields: dict[str, Any]) -> bytes:
    text = fields.get("image")
    if not isinstance(text, str) or not text:
        raise Refused(400, "'image' is to be a picture's file in base64.")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(
            400, f"'image' is no base64 ({error}): send a picture's file in it, without 'data:...,'."
        ) from error


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Refused(400, f"{name!r} is to hold text, not {str(value)[:40]!r}.")
    if len(value) > MOST_TEXT:
        raise Refused(400, f"{name!r} holds a text of {len(value):,} characters; the limit is {MOST_TEXT:,}.")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise Refused(400, f"{name!r} holds half of a surrogate pair, which is no character.")
    return value
