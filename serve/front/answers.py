"""What an answer says about its guard, in header and body: `lvlm_guard.proof` reads it, `lvlm-guard eval` checks it.

Bodies are not read and written anew but spliced: the engine's JSON names its model before anything that a model wrote,
and a quote inside a JSON text always has a backslash before it, so that no text can be taken for a key.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import quote

from lvlm_guard.proof import FIELD, MATCHED, header_of
from lvlm_guard.serve.front.names import Names

_DATA, _END = b"data: ", b"\n\n"
_MODEL = re.compile(rb'"model"\s*:\s*"(?:[^"\\]|\\.)*"')
_OPEN = re.compile(rb"\s*\{(?=\s*\")")
_ENDS = re.compile(rb'"finish_reason"\s*:\s*"|"choices"\s*:\s*\[\s*\]')

Header = tuple[bytes, bytes]


@dataclass(frozen=True)
class Proof:
    """What is said of one answer.

    Args:
        name: of the model as the client wrote it; the engine's own answers always name the first.
        guards: methods served here.
        method: that ran; None: none.
        knobs: of the method.
        version: of the masks or scores, "" where the method needs none.
        unguarded: why a guarded name was answered plainly, "" where it was not.
        claims: what was voted on, as `lvlm_guard.proof.Proof` has it; "" for other methods.
        notes: on what the matcher could not look at.
    """

    name: str
    guards: tuple[str, ...]
    method: str | None = None
    knobs: Mapping[str, float] = field(default_factory=dict)
    version: str = ""
    unguarded: str = ""
    claims: str = ""
    notes: tuple[str, ...] = ()

    def headers(self) -> list[Header]:
        """Return the header of an answer, or one for each guard that did not run."""
        if self.method is None:
            return [(_header(guard), b"off") for guard in self.guards]
        said = ["on", *(f"{knob}={_number(value)}" for knob, value in self.knobs.items())]
        if self.version:
            said.append(f"{MATCHED[self.method]}={quote(self.version, safe=' /:@+')}")
        if self.claims:
            said.append(f"claims={self.claims}")
        return [(_header(self.method), "; ".join(said).encode())]

    def refused(self) -> list[Header]:
        """Return the header of an error."""
        return [(_header(guard), b"refused") for guard in ((self.method,) if self.method else self.guards)]

    def body(self) -> dict[str, Any]:
        """Return the field of a body."""
        said: dict[str, Any] = {"method": self.method, "knobs": dict(self.knobs)}
        if self.method and self.version:
            said[MATCHED[self.method]] = self.version
        more = {"claims": self.claims, "notes": list(self.notes), "why": self.unguarded}
        return said | {key: value for key, value in more.items() if value}

    @cached_property
    def _spliced(self) -> bytes:
        return b'{"%s":%s,' % (FIELD.encode(), dumped(self.body()))

    @cached_property
    def _named(self) -> bytes:
        return b'"model":' + dumped(self.name)

    def marked(self, raw: bytes) -> bytes:
        """Return a whole answer with the proof in it; raises `ValueError` where it is no JSON object."""
        raw = raw.rstrip()
        if not raw.endswith(b"}"):
            raise ValueError("no object")
        return self._proved(self._renamed(raw))

    def chunk(self, raw: bytes, first: bool) -> bytes:
        """Return a chunk of a stream by the client's name, the proof in the first and those that end, as `marked`."""
        named = self._renamed(raw)
        return self._proved(named) if first or _ENDS.search(raw) else named

    def _renamed(self, raw: bytes) -> bytes:
        return _MODEL.sub(lambda _: self._named, raw, count=1)

    def _proved(self, raw: bytes) -> bytes:
        if (opened := _OPEN.match(raw)) is None:
            raise ValueError("no object")
        return self._spliced + raw[opened.end() :]


async def marked_stream(proof: Proof, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield a streamed answer with its proof in the first chunk, and in those that end a choice or the stream.

    No event that is whole waits for the next one.
    """
    rest, first = b"", True

    def marked(event: bytes) -> bytes:
        nonlocal first
        if event.startswith(_DATA) and b'"choices"' in event:
            with contextlib.suppress(ValueError):
                event, first = _DATA + proof.chunk(event[len(_DATA) :], first), False
        return event + _END

    async for piece in pieces:
        *events, rest = (rest + piece).split(_END)
        yield b"".join(map(marked, events))
    if rest.strip():
        yield marked(rest)


def model_list(raw: bytes, names: Names) -> bytes:
    """Return the engine's list of models with the guarded names in it, and without any name that is not served.

    Raises:
        ValueError: it is no such list.
    """
    listed = json.loads(raw)
    if not isinstance(listed, dict) or not isinstance(listed.get("data"), list):
        raise ValueError("no list of models")
    cards = {card["id"]: card for card in listed["data"] if isinstance(card, dict) and "id" in card}
    data = [
        {**cards[plain], "id": full, FIELD: {"method": guard}}
        for plain in names.plain
        if plain in cards
        for full, guard in names.guarded(plain).items()
    ]
    return dumped({**listed, "data": data})


def error(
    status: int, message: str, retry_after: float | None = None, headers: Sequence[Header] = ()
) -> tuple[list[Header], bytes]:
    """Return headers and body of an error in OpenAI's form."""
    kind = {401: "authentication_error", 404: "not_found_error", 503: "service_unavailable"}.get(status)
    kind = kind or ("invalid_request_error" if status < 500 else "server_error")
    raw = dumped({"error": {"message": message, "type": kind, "param": None, "code": status}})
    sent = [*headers, (b"content-type", b"application/json")]
    if retry_after is not None:
        sent.append((b"retry-after", str(max(1, round(retry_after))).encode()))
    if status == 401:
        sent.append((b"www-authenticate", b"Bearer"))
    return sent, raw


def _header(guard: str) -> bytes:
    return header_of(guard).encode()


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def dumped(value: Any) -> bytes:
    """Return JSON as short as it can be; half of a surrogate pair passes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
