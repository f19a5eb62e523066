"""What a guard may cost, by the cost model of the twin engine, and whether a measured ratio keeps to it.

    a twin runs each token twice      2 times an ordinary engine at most, in prefill and decode, plain requests too
    on one server                     a guarded request costs the engine what a plain one costs
    AGLA and VCD                      the second view once more through processor and tower: a plain prefill at most
    agla, vote                        masks or scores of a new picture: what they take where nobody else asks
    vote without a twin               at least .95 of the ordinary engine's throughput, and the scores

All seconds are measured in the same run. What runs on other cores or devices at the same time costs less than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lvlm_guard.methods import REGISTRY

TWICE = 2.0
LEAST_SHARE = 0.95
"""Of an ordinary engine's throughput, that `vote` aims at."""

Verdict = Literal["under", "over", "unclear"]


@dataclass(frozen=True)
class Seconds:
    """Measured seconds that the bound is made of.

    Args:
        plain: of a plain request at this load, one by one as they leave the server: wall time over requests.
        first: of a plain request's first token with the fewest in flight.
        matched: until a mask or scores were there with the fewest in flight; 0 where none is needed.
    """

    plain: float
    first: float
    matched: float


def has_branch(guard: str | None) -> bool:
    """Return whether a guard compares with a second view."""
    return guard is not None and bool(REGISTRY.get(guard)().branches())


def bound(guard: str | None, twin: bool, same_server: bool, seconds: Seconds) -> float:
    """Return the largest ratio of seconds, guarded over plain, that the cost model allows.

    Args:
        guard: that is compared; None: plain requests on a guarded server.
        twin: whether its server has a twin engine.
        same_server: whether the plain requests are of the same server.
        seconds: measured.
    """
    engine = 1.0 if same_server else TWICE if twin else 1 / LEAST_SHARE
    view = seconds.first if same_server and has_branch(guard) else 0.0
    if guard == "vote" and same_server:
        engine = 1 / LEAST_SHARE
    return engine + (seconds.matched + view) / seconds.plain


def verdict(value: float, low: float | None, allowed: float) -> Verdict:
    """Return how a ratio stands to its bound: "over" only where its interval is."""
    if value <= allowed:
        return "under"
    return "over" if low is not None and low > allowed else "unclear"
