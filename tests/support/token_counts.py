"""What an engine's process has counted of guarded tokens, for the engines of the tests."""

from __future__ import annotations

import time


def counted() -> dict[str, list[int]]:
    """Return guard -> [tokens, overruled] once all that was settled shows."""
    from prometheus_client import REGISTRY

    from lvlm_guard.serve.overruled import EVERY

    time.sleep(EVERY + 1)
    found: dict[str, list[int]] = {}
    for place, name in enumerate(("lvlm_guard_tokens", "lvlm_guard_tokens_overruled")):
        for metric in REGISTRY.collect():
            for sample in metric.samples if metric.name == name else ():
                if sample.name == f"{name}_total":
                    found.setdefault(sample.labels["guard"], [0, 0])[place] = int(sample.value)
    return found
