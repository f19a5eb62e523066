"""Peak memory of a stretch of work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
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
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        import resource

        unit = 2**20 if sys.platform == "darwin" else 1024
        return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return lambda: int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
