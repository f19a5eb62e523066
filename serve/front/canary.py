"""Keeps guarded names closed until `lvlm-guard serve` has seen the guard act, and lets its questions alone through.

    X-LVLM-Guard-Canary: TOKEN            asks before the names are open
    X-LVLM-Guard-Canary: TOKEN 0.999      and says what the matcher would: a mask that keeps all (0.5 and more) or
                                          nothing, and 0.999 for every claim

The token is random and in the environment of the server's own processes. Once the names are open it opens nothing.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lvlm_guard.serve.errors import Refused
from lvlm_guard.serve.front.answers import Header
from lvlm_guard.serve.maskd.client import Mask, Scores
from lvlm_guard.serve.wire import SIDE, pack_mask

HEADER = "X-LVLM-Guard-Canary"
RANK = "X-Data-Parallel-Rank"
"""Header by which vLLM is told which of its engines answers; before the names are open the canary may choose it."""

AGAIN = 5.0
"""Seconds after which to ask again while the guard is being checked."""


@dataclass
class Chosen:
    """Stands for the matcher service with answers that the canary chose.

    Args:
        share: 0 to 1: of the picture that is kept, rounded to all or nothing, and the probability of every claim.
    """

    share: float
    hits: int = 0
    asked: int = 0

    known = ("canary", None)

    async def seen(self) -> tuple[str, int | None]:
        """Return a version of its own."""
        return "canary", None

    health = seen

    async def mask(self, image: bytes, question: str) -> Mask:
        """Return a mask that keeps all, or nothing."""
        return Mask(pack_mask(np.full((SIDE, SIDE), self.share >= 0.5)), "canary")

    async def scores(self, image: bytes, claims: Sequence[str]) -> Scores:
        """Return the same probability for every claim."""
        return Scores(dict.fromkeys(claims, self.share), "canary")

    async def aclose(self) -> None:
        """Close nothing."""


class Gate:
    """Whether guarded names are open.

    Args:
        file: whose existence opens them, in every process of the server; "" for always open.
        token: lets a request through before; "" for none.
    """

    def __init__(self, file: str, token: str) -> None:
        self._file = file
        self._token = token.encode()
        self._open = not file

    def check(self, headers: Sequence[Header], name: str) -> Chosen | None:
        """Return what the canary chose, None where the matcher service is to be asked.

        Args:
            headers: of the request.
            name: guarded name that it asks for.

        Raises:
            Refused: 503, the names are not open yet.
        """
        if self._opened():
            return None
        known, share = self._known(headers)
        if not known:
            raise Refused(
                503, f"{name} is not yet open: the server still checks that its guard acts.", AGAIN, "opening"
            )
        return Chosen(float(share)) if share else None

    def rank(self, headers: Sequence[Header]) -> dict[str, str]:
        """Return the header that names the engine, where the canary sent it and the names are not open yet."""
        if self._opened() or not self._known(headers)[0]:
            return {}
        rank = next((value for key, value in headers if key.lower() == RANK.lower().encode()), b"")
        return {RANK: rank.decode("latin-1")} if rank else {}

    def _known(self, headers: Sequence[Header]) -> tuple[bool, bytes]:
        """Return whether the canary asks, and what it says for the matcher."""
        given = next((value for key, value in headers if key.lower() == HEADER.lower().encode()), b"")
        token, _, share = given.partition(b" ")
        return bool(self._token) and hmac.compare_digest(token, self._token), share

    def check_open(self) -> None:
        """Raise `Refused`, 503, where the guards are still being checked."""
        if not self._opened():
            raise Refused(503, "The server still checks that its guards act.", AGAIN, "opening")

    def _opened(self) -> bool:
        self._open = self._open or os.path.exists(self._file)
        return self._open
