"""Peak memory of a stretch of work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def peak_meter(device: Any) -> Callable[[], float]:
    """Start over with the peak of memory; returns what reads it, in MiB.

    On CUDA it is PyTorch's. On Linux it is the resident set's high-water mark, which the kernel lets a
    process set back; elsewhere the process's peak since its start, which never falls.
    """
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: float(torch.cuda.max_memory_allocated(device)) / 2**20
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        return _high_water
    except OSError:
        return _since_start


def _high_water() -> float:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def _since_start() -> float:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)
