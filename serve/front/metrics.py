"""What the front counts, for Prometheus; its /metrics shows it behind the engine's own figures."""

from __future__ import annotations

from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Histogram

from lvlm_guard.serve.maskd.metrics import text_of


class FrontMetrics:
    """The front's counters in one registry.

    Args:
        registry: where they are registered; a registry holds one set of them.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.answered = Counter(
            "lvlm_guard_requests", "Chats that were answered, by the guard that ran.", ["guard"], registry=registry
        )
        self.unneeded = Counter(
            "lvlm_guard_unneeded", "Chats under a guarded name without a picture, answered plainly.", registry=registry
        )
        self.refused = Counter(
            "lvlm_guard_refusals", "Requests that the front refused.", ["status", "reason"], registry=registry
        )
        self.broken = Counter(
            "lvlm_guard_broken_streams", "Streamed answers in which the engine was lost.", registry=registry
        )
        self.gone = Counter("lvlm_guard_disconnects", "Clients that left before the answer began.", registry=registry)
        self.matched = Histogram(
            "lvlm_guard_matcher_seconds",
            "Time until a request had its masks or scores, in seconds, from memory or from the matcher service.",
            ["guard"],
            registry=registry,
        )
        self.asked = Counter("lvlm_guard_front_asked", "Masks and scores that requests needed.", registry=registry)
        self.cached = Counter("lvlm_guard_front_cache_hits", "Of these, those the front had.", registry=registry)

    def text(self) -> bytes:
        """Return the figures of all processes of this front, in Prometheus' text format."""
        return text_of(self._registry)


@lru_cache(maxsize=1)
def process_metrics() -> FrontMetrics:
    """Return this process's counters."""
    return FrontMetrics(CollectorRegistry())
