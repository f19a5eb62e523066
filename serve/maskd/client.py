"""Ask the matcher service for masks and scores."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx

from lvlm_guard.matching.memory import Recent
from lvlm_guard.matching.vocabulary import TEMPLATE
from lvlm_guard.serve.errors import MaskdError, Refused, WireError
from lvlm_guard.serve.maskd.asks import Ask
from lvlm_guard.serve.wire import unpack_mask, unpack_scores

MOST_ANSWER = 4 << 20
"""Bytes of the service's largest answer, and more."""

AGAIN = 1.0
"""Seconds after which to ask again, where the service did not say."""

_KEPT, _ENTRY = 16 << 20, 512  # bytes of answers that are remembered; of one besides its texts


@dataclass(frozen=True)
class Mask:
    """What matters in a picture to a question, and the version of the matcher that says so.

    Args:
        mask: text that `lvlm_guard.serve.wire.unpack_mask` reads; it was checked.
        note: what the matcher could not look at: a text cut short, a map that says nothing; "" for nothing.
    """

    mask: str
    version: str
    note: str = ""


@dataclass(frozen=True)
class Scores:
    """How far a picture supports claims, claim -> probability, 0 to 1, not to be changed; the rest as of `Mask`."""

    scores: Mapping[str, float]
    version: str
    note: str = ""


class MaskdClient:
    """Asks one matcher service, over one event loop.

    Answers are checked before they are passed on and remembered while the matcher's version stays the same. Proxies
    named in the environment are not used.

    Args:
        url: of the service: "http://127.0.0.1:8201".
        timeout: seconds for one question, connection and all.
        connections: at most at once; further questions wait for one, within the time-out.

    `asked` counts questions, `hits` those that were answered from memory. `known` is what `seen` says where nobody need
    be asked, `template` the sentence about an object that its matcher knows best.
    """

    template = TEMPLATE

    def __init__(self, url: str, timeout: float = 15.0, connections: int = 64) -> None:
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.hits = 0
        self.asked = 0
        self.known: tuple[str, int | None] | None = None
        self._told: Recent[Ask, tuple[str, str, str]] = Recent(_KEPT)
        self._version: str | None = None
        self._http = httpx.AsyncClient(
            timeout=timeout, limits=httpx.Limits(max_connections=connections), trust_env=False, follow_redirects=False
        )

    async def mask(self, image: bytes, question: str) -> Mask:
        """Return the mask of a picture for a question.

        Args:
            image: the picture's file.
            question: as the user asked it.

        Raises:
            MaskdError: there is no answer, or none that can be used; `retry_after` says when to ask again.
            Refused: the picture or the question can't be used; status and message are for the client.
        """
        return Mask(*await self._ask(Ask.about("mask", image, (question,)), {"question": question}))

    async def scores(self, image: bytes, claims: Sequence[str]) -> Scores:
        """Return how far a picture supports each claim.

        Raises:
            MaskdError, Refused: as for `mask`.
        """
        text, version, note = await self._ask(Ask.about("scores", image, tuple(claims)), {"claims": list(claims)})
        found = unpack_scores(text)
        if found.keys() != set(claims):
            raise self._broken("its scores are of other claims than those asked about")
        return Scores(found, version, note)

    async def seen(self) -> tuple[str, int | None]:
        """Return its matcher's version, and the side of the square that it squashes pictures to (None: it does not).

        Raises:
            MaskdError: it does not answer, or is not well.
        """
        return self.known or await self.health()

    async def health(self) -> tuple[str, int | None]:
        """Return what `seen` does, asked anew; raises as it does."""
        said = await self._answer("GET", "/health", None)
        side, version, template = said.get("side"), said.get("version"), said.get("template")
        sided = side is None or (isinstance(side, int) and 1 <= side <= 4096)
        if not isinstance(version, str) or not sided or not isinstance(template, str | None):
            raise self._broken(f"its health says {said!r:.200}")
        self.template = template or TEMPLATE
        self._answers(version)
        self.known = version, side
        return self.known

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _ask(self, ask: Ask, fields: dict[str, Any]) -> tuple[str, str, str]:
        kind = ask.kind
        self.asked += 1
        if known := self._told.get(ask):
            self.hits += 1
            return known
        body = json.dumps({"image": base64.b64encode(ask.image).decode(), **fields}).encode()
        said = await self._answer("POST", f"/{kind}", body)
        text, version, note = said.get(kind), said.get("version"), str(said.get("note", ""))[:500]
        if not isinstance(text, str) or not isinstance(version, str) or not version:
            raise self._broken(f"its answer lacks {kind} or version")
        try:
            _ = unpack_mask(text) if kind == "mask" else unpack_scores(text)
        except WireError as error:
            raise self._broken(f"its {kind} can't be used: {error}") from error
        self._answers(version)
        size = len(text) + len(note) + sum(map(len, ask.texts)) + _ENTRY
        self._told.put(replace(ask, image=b""), (text, version, note), size)
        return text, version, note

    def _answers(self, version: str) -> None:
        """Forget what another matcher said, where one was started in its place."""
        if version != self._version:
            self._told.clear()
            self._version, self.known = version, None

    async def _answer(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            async with (
                asyncio.timeout(self.timeout),
                self._http.stream(method, self.url + path, content=body, headers=headers) as response,
            ):
                raw = b""
                async for part in response.aiter_bytes():
                    raw += part
                    if len(raw) > MOST_ANSWER:
                        raise self._broken(f"its answer has more than {MOST_ANSWER:,} bytes")
        except TimeoutError:
            raise MaskdError(
                f"The matcher service at {self.url} did not answer within {self.timeout:g} s.", AGAIN
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise MaskdError(
                f"The matcher service at {self.url} can't be reached ({type(error).__name__}: {error}).", AGAIN
            ) from error
        said = self._read(raw)
        if response.status_code == 200:
            return said
        reason = said.get("error")
        message = str(reason.get("message", ""))[:2000] if isinstance(reason, dict) else ""
        if response.status_code in (400, 413):
            raise Refused(response.status_code, message or "The matcher can't use this picture or question.")
        raise MaskdError(
            f"The matcher service answered {response.status_code}: {message or 'no reason given'}",
            _seconds(response.headers.get("retry-after")) if response.status_code == 503 else None,
        )

    def _read(self, raw: bytes) -> dict[str, Any]:
        try:
            said = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise self._broken(f"its answer is no JSON ({error})") from error
        if not isinstance(said, dict):
            raise self._broken("its answer is no JSON object")
        return said

    def _broken(self, what: str) -> MaskdError:
        return MaskdError(f"What answers at {self.url} is no matcher service of this release: {what}.")


def _seconds(text: str | None) -> float:
    """Return the seconds of a `Retry-After`, within 1 and 60."""
    try:
        return min(60.0, max(1.0, float(text or "")))
    except ValueError:
        return AGAIN
