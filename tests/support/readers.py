"""What stands for reading a request in the front's processes: it is told to hang, to end, or to take all memory."""

from __future__ import annotations

import os
import time
from typing import Any

from lvlm_guard.serve.front import reading


def read(raw: bytes, rules: Any, seen: Any, fetched: Any) -> Any:
    """Do what the text says, or read."""
    if b"do hang" in raw:
        with reading.within(rules.reading_seconds):
            time.sleep(60)
    if b"do end" in raw:
        os._exit(3)
    if b"do grow" in raw:
        reading._limit_memory(rules.most_memory)
        try:
            _ = bytearray(1 << 33)
        except MemoryError:
            raw = raw.replace(b"do grow", b"did grow")
    return reading.read(raw, rules, seen, fetched)
