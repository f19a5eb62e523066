"""What a server is asked: the captions and questions of `lvlm-guard bench`, each about a picture of its own."""

from __future__ import annotations

import io
import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lvlm_guard.bench.measure import Workload, stamped
from lvlm_guard.serve.measure.endpoint import Chat

STAMPS = 1 << 24  # `stamped` writes this many numbers


@dataclass(frozen=True)
class Arm:
    """One way to be answered.

    Args:
        name: of the model.
        guard: None: plain.
        server: "guarded", or "plain" for the ordinary vLLM beside it.
    """

    name: str
    guard: str | None
    server: str = "guarded"

    @property
    def shown(self) -> str:
        """Return it in two words at most."""
        return self.guard or ("plain" if self.server == "guarded" else "plain server")


@dataclass(frozen=True)
class Cell:
    """One kind of request at one load.

    Args:
        workload: captions or questions, one a call.
        at_once: requests in flight.
    """

    workload: Workload
    at_once: int

    @property
    def requests(self) -> int:
        """Return the number of requests of a block: two rounds at least, the cheap questions more."""
        return self.at_once * max(2, (4 if self.workload.task == "caption" else 12) // self.at_once)


class Asking:
    """Makes the requests of blocks.

    Args:
        warm: about the same pictures in all blocks, so that masks and prompts are remembered.
    """

    def __init__(self, warm: bool) -> None:
        self._warm = warm
        # not those of an earlier run, which the server may remember
        self._numbers = itertools.count(secrets.randbelow(STAMPS))

    def chats(self, cell: Cell, block: int, arm: Arm) -> list[Chat]:
        """Return the requests of a block to one arm; other arms get the same scenes and prompts."""
        first = 0 if self._warm else block * cell.requests
        return [self._chat(cell.workload, call, arm) for call in range(first, first + cell.requests)]

    def _chat(self, workload: Workload, call: int, arm: Arm) -> Chat:
        (picture,), (prompt,) = workload.pictures(call), workload.prompts(call)
        if not self._warm:
            picture = stamped(picture, next(self._numbers) % STAMPS)
        full = workload.task == "caption"
        return Chat(arm.name, arm.guard, prompt, png(picture), workload.new_tokens, full=full)


def png(picture: Image.Image, noted: PngInfo | None = None) -> bytes:
    """Return a picture as a PNG file, with something noted in it beside the pixels."""
    held = io.BytesIO()
    picture.save(held, "PNG", compress_level=1, pnginfo=noted)
    return held.getvalue()


def cells(workloads: Sequence[Workload], at_once: Sequence[int]) -> list[Cell]:
    """Return every workload of one request a call at every load."""
    return [Cell(workload, load) for workload in workloads if workload.batch == 1 for load in at_once]
