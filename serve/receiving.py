"""Bodies of requests as they come in, within limits that let nobody take another's place."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import anyio
from starlette.types import Receive

from lvlm_guard.serve.errors import Refused

_Given = TypeVar("_Given")


class Gone(Exception):
    """The client left; nobody is there to be answered."""


class Bodies:
    """All bodies that are held at one time.

    Who sends slowly holds what it has sent and nothing else, so that many who do so deny nobody.

    Args:
        most: bytes of one body.
        most_held: bytes of all.
        seconds: for one to arrive.
        changed: told how many bytes are held.
    """

    def __init__(
        self, most: int, most_held: int, seconds: float, changed: Callable[[int], object] = lambda held: None
    ) -> None:
        self._most, self._most_held, self._seconds, self._changed = most, max(most, most_held), seconds, changed
        self._now = 0

    async def read(self, held: ExitStack, headers: Any, receive: Receive) -> bytes:
        """Return a body, which counts as held until the stack is closed.

        Raises:
            Refused: 413, it is too large; 408, it came too slowly; 503, all bodies together are too large.
            Gone: its client left.
        """
        length = next((value for name, value in headers if name.lower() == b"content-length"), b"0")
        if length.isdigit() and int(length[:20]) > self._most:
            raise self._too_large()
        raw = bytearray()
        try:
            with anyio.fail_after(self._seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    piece = message.get("body", b"")
                    if len(raw) + len(piece) > self._most:
                        raise self._too_large()
                    if self._now + len(piece) > self._most_held:
                        raise Refused(503, "Requests fill the memory set aside for them. Ask again later.", 1, "memory")
                    self._add(len(piece))
                    held.callback(self._add, -len(piece))
                    raw += piece
                    more = message.get("more_body", False)
        except TimeoutError:
            raise Refused(408, f"The request did not arrive within {self._seconds:g} seconds.") from None
        return bytes(raw)

    def _add(self, size: int) -> None:
        self._now += size
        self._changed(self._now)

    def _too_large(self) -> Refused:
        return Refused(413, f"The request is larger than {self._most:,} bytes: send fewer or smaller pictures.")


async def while_there(receive: Receive, work: Callable[[], Awaitable[_Given]]) -> _Given:
    """Return what some work gives.

    Raises:
        Gone: the client, whose body was read, left meanwhile; the work was cancelled.
        Exception: what the work raised.
    """
    given: list[_Given] = []
    failed: list[Exception] = []

    async def run() -> None:
        try:
            given.append(await work())
        except Exception as error:
            failed.append(error)
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        while (await receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()
    if failed:
        raise failed[0]
    if not given:
        raise Gone
    return given[0]
