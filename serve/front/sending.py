"""What goes back to the client: vLLM's answer with its proof, or an error where it can't carry one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Literal

from lvlm_guard.serve.front.answers import Header, error

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


class Marking:
    """An ASGI `send` that puts something into what passes.

    Args:
        send: the server's.
        whole: changes a JSON body; a ValueError makes the answer an error.
        headers: of answers that succeed.
        refused: headers of those that don't; they pass as they are.
        pieces: changes a streamed body, given a piece and whether more follows; None: none is expected.
        begun: called once when an answer succeeds.
    """

    def __init__(
        self,
        send: Send,
        whole: Callable[[bytes], bytes],
        headers: Sequence[Header] = (),
        refused: Sequence[Header] = (),
        pieces: Callable[[bytes, bool], bytes] | None = None,
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        self._send = send
        self._whole = whole
        self._headers = headers
        self._refused = refused
        self._pieces = pieces
        self._begun = begun
        self._way: Literal["as it is", "whole", "pieces", "over"] = "over"
        self._start: Message = {}
        self._body = bytearray()

    async def __call__(self, message: Message) -> None:
        """Pass a message on, changed."""
        if message["type"] == "http.response.start":
            await self._started(message)
        elif message["type"] != "http.response.body" or self._way == "over":
            return
        elif self._way == "as it is":
            await self._send(message)
        elif self._way == "pieces" and self._pieces is not None:
            more = message.get("more_body", False)
            piece = self._pieces(message.get("body", b""), more)
            if piece or not more:
                await self._send({"type": "http.response.body", "body": piece, "more_body": more})
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._finish()

    async def _started(self, message: Message) -> None:
        kind = next((value for name, value in message["headers"] if name.lower() == b"content-type"), b"")
        kind = kind.partition(b";")[0].strip().lower()
        self._start = message
        if message["status"] != 200:
            self._way = "as it is"
            await self._send({**message, "headers": [*message["headers"], *self._refused]})
        elif kind == b"application/json":
            self._way = "whole"
        elif kind == b"text/event-stream" and self._pieces is not None:
            self._way = "pieces"
            self._begun()
            await self._send({**message, "headers": [*_unmeasured(message["headers"]), *self._headers]})
        else:
            await self._broken()

    async def _finish(self) -> None:
        try:
            raw = self._whole(bytes(self._body))
        except ValueError:
            await self._broken()
            return
        self._begun()
        length = (b"content-length", str(len(raw)).encode())
        await self._send({**self._start, "headers": [*_unmeasured(self._start["headers"]), length, *self._headers]})
        await self._send({"type": "http.response.body", "body": raw})

    async def _broken(self) -> None:
        self._way = "over"
        message = "The engine's answer can't say which guard made it, so it is not given. Is vLLM another version?"
        headers, raw = error(502, message, headers=self._refused)
        await self._send({"type": "http.response.start", "status": 502, "headers": headers})
        await self._send({"type": "http.response.body", "body": raw})


def _unmeasured(headers: Sequence[Header]) -> list[Header]:
    return [(name, value) for name, value in headers if name.lower() != b"content-length"]
