"""What the front counts, for Prometheus; its /metrics shows it behind the engine's own figures."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Histogram

from lvlm_guard.serve.maskd.metrics import text_of


class FrontMetrics:
    """The front's counters in one registry, which holds one set of them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        count = partial(Counter, registry=registry)
        self.answered = count("lvlm_guard_requests", "Chats that were answered, by the guard that ran.", ["guard"])
        self.unneeded = count("lvlm_guard_unneeded", "Chats under a guarded name without a picture, answered plainly.")
        self.refused = count("lvlm_guard_refusals", "Requests that the front refused.", ["status", "reason"])
        self.broken = count("lvlm_guard_broken_streams", "Streamed answers in which the engine was lost.")
        self.gone = count("lvlm_guard_disconnects", "Clients that left before the answer began.")
        taken = "Time until a request had its masks or scores, in seconds, from memory or from the matcher service."
        self.matched = Histogram("lvlm_guard_matcher_seconds", taken, ["guard"], registry=registry)
        self.asked = count("lvlm_guard_front_asked", "Masks and scores that requests needed.")
        self.cached = count("lvlm_guard_front_cache_hits", "Of these, those the front had.")

    def text(self) -> bytes:
        """Return the figures of all processes of this front, in Prometheus' text format."""
        return text_of(self._registry)
