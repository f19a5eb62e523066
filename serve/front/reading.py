"""Read a request, pictures and all, in a process of its own that can be killed; needs no torch.

What clients send is looked at nowhere else: a text or a file that takes for ever, or all the memory, costs one process.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio import to_process
from PIL import Image

from lvlm_guard.proof import CHECKS, MATCHED
from lvlm_guard.serve.errors import Refused
from lvlm_guard.serve.front.pictures import is_address, look_at, of_url
from lvlm_guard.serve.front.requests import Meant, asked
from lvlm_guard.serve.front.settings import FrontSettings

MIB = 1 << 20
_Made = TypeVar("_Made")

VIEWED = frozenset({*MATCHED, *CHECKS})
"""Guards and checks whose pictures the matcher is shown."""

Seen = tuple[str, int | None]
"""Version of a matcher, and the side of the square that it squashes pictures to; None: it sees them otherwise."""


@dataclass(frozen=True, kw_only=True)
class Read(Meant):
    """A request that was read.

    Args:
        body: what the engine gets, but for the guard: a JSON object.
        views: what the matcher is sent of each picture; () where it is not asked, or what it sees was not known.
    """

    body: bytes
    views: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Addresses:
    """Where the pictures of a request have to be fetched first; data URLs are not among them."""

    urls: tuple[str, ...]


def read(raw: bytes, rules: FrontSettings, seen: Seen | None, fetched: Mapping[str, bytes]) -> Read | Addresses:
    """Read a request.

    Args:
        raw: its body.
        rules: what it may hold.
        seen: the matcher, and the side of the square that it is sent; None: not known.
        fetched: address -> what was there.

    Raises:
        Refused: with what is wrong.
    """
    _limit_memory(rules.most_memory)
    try:
        with within(rules.reading_seconds):
            return _read(raw, rules, seen, fetched)
    except MemoryError as error:
        raise Refused(413, f"Reading the request took more than {rules.most_memory} MiB: send less.") from error


def _read(raw: bytes, rules: FrontSettings, seen: Seen | None, fetched: Mapping[str, bytes]) -> Read | Addresses:
    it = asked(raw, rules)
    wanted = tuple(part["url"] for part in it.chat.pictures if is_address(part["url"]))
    if missing := tuple(dict.fromkeys(url for url in wanted if url not in fetched)):
        return Addresses(missing)
    views = []
    for part in it.chat.pictures:
        url = part["url"]
        data = fetched[url] if url in fetched else of_url(url, rules.most_bytes)
        matched = seen is not None and it.guard in VIEWED
        side = seen[1] if seen is not None and matched else None
        picture = look_at(data, most_bytes=rules.most_bytes, most_pixels=rules.most_pixels, side=side)
        part["url"] = picture.url
        if matched:
            views.append(picture.view)
    body = json.dumps(it.body, ensure_ascii=False, allow_nan=False).encode()
    told = {one.name: getattr(it, one.name) for one in fields(Meant)}
    return Read(**told, body=body, views=tuple(views))


class Readers:
    """Processes that read requests, a fixed number at once; one that takes too long ends.

    Args:
        rules: what requests may hold, and how many processes there are.
    """

    def __init__(self, rules: FrontSettings) -> None:
        self._rules, self._processes = rules, rules.readers
        self._turn: anyio.CapacityLimiter | None = None

    async def warm(self) -> None:
        """Start all processes, so that the first requests need not wait for them."""
        with contextlib.suppress(anyio.BrokenWorkerProcess, ExceptionGroup):  # the first requests say so
            async with anyio.create_task_group() as group:
                for _ in range(self._processes):
                    group.start_soon(self._run, ready)

    async def read(self, raw: bytes, seen: Seen | None, fetched: Mapping[str, bytes]) -> Read | Addresses:
        """Read a request; raises as `read` does, and `Refused` where it took too long."""
        try:
            return await self._run(read, raw, self._rules, seen, fetched)
        except anyio.BrokenWorkerProcess as error:
            if error.args:  # it was not the request: none could be started
                raise Refused(503, "The server is too busy to read requests. Ask again later.", 5) from error
            raise Refused(
                413,
                f"Reading the request took more than {self._rules.reading_seconds:g} seconds, or ended what reads it: "
                "send smaller or other pictures.",
                None,
                "reading",
            ) from None

    async def _run(self, call: Callable[..., _Made], *given: object) -> _Made:
        self._turn = self._turn or anyio.CapacityLimiter(self._processes)
        # whoever leaves meanwhile must not cost a process: starting one takes longer than most requests
        with anyio.CancelScope(shield=True):
            return await to_process.run_sync(call, *given, limiter=self._turn)
        raise RuntimeError("nobody cancels the scope above")


def ready() -> None:
    """Read the decoders, in a process that has read this module by then."""
    Image.init()


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """End this process should what follows take longer, in whatever library it is; not on Windows."""
    timer = getattr(signal, "setitimer", None)
    if timer is None:
        yield
        return
    timer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        timer(signal.ITIMER_REAL, 0)


@lru_cache(maxsize=1)
def _limit_memory(mib: int) -> None:
    """Let this process take so much more than it has by now; where the system can't say, pixels are the limit."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + mib * MIB
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def with_fields(body: bytes, more: Mapping[str, Any]) -> bytes:
    """Return a body of `Read`, which has none of them, with fields of which the front is the only author."""
    return body[:-1] + b"," + json.dumps(more).encode()[1:] if more else body
