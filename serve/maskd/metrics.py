"""What the service counts, in Prometheus' form, also over several worker processes.

With `PROMETHEUS_MULTIPROC_DIR` set before prometheus_client is imported, each worker keeps its values in files there
and any worker answers for all of them.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

from lvlm_guard.serve.maskd.asks import SHARED

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters of one worker process, in a registry of their own."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        count, timed = partial(Counter, registry=own), partial(Histogram, registry=own, buckets=_SECONDS)
        gauge = partial(Gauge, registry=own, multiprocess_mode="livesum")
        self.answers = count("lvlm_guard_maskd_answers", "Answers by route and status", ["route", "status"])
        self.seconds = timed("lvlm_guard_maskd_seconds", "From request to answer", ["route"])
        self.hits = count("lvlm_guard_maskd_cache_hits", "Asks answered from memory", ["route"])
        self.misses = count("lvlm_guard_maskd_cache_misses", "Asks not in memory", ["route"])
        self.joined = count("lvlm_guard_maskd_joined", "Asks that waited for an equal one", ["route"])
        self.busy = count("lvlm_guard_maskd_busy", "Answers of status 503 by reason", ["reason"])
        self.waiting = gauge("lvlm_guard_maskd_waiting", "Asks in the queue")
        self.held = gauge("lvlm_guard_maskd_held_bytes", "Bytes of requests in memory")
        self.batch = Histogram(
            "lvlm_guard_maskd_batch_asks", "Asks matched at once", buckets=(1, 2, 4, 8, 16, 32, 64), registry=own
        )
        self.matching = timed("lvlm_guard_maskd_matching_seconds", "Time of one batch in the matcher")

    def text(self) -> bytes:
        """Return the values of all workers in Prometheus' text format."""
        return text_of(self._registry)


def text_of(registry: CollectorRegistry) -> bytes:
    """Return the values of a registry, or of all processes that share a folder, in Prometheus' text format."""
    folder = os.environ.get(SHARED)
    if folder is None:
        return generate_latest(registry)
    for pid in {int(file.stem.rpartition("_")[2]) for file in Path(folder).glob("gauge_live*_*.db")}:
        if not _alive(pid):  # a killed worker's queue is gone, what it counted is not
            multiprocess.mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]
    every = CollectorRegistry()
    multiprocess.MultiProcessCollector(every, folder)  # type: ignore[no-untyped-call]
    return generate_latest(every)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
