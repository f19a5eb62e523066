"""How many threads a run computes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread(wanted: bool) -> Iterator[None]:
    """Compute with one thread within, where wanted: threads of a tiny model wait for each other.

    Workers compute so too, and sums come out alike.

    Args:
        wanted: False changes nothing.
    """
    import torch

    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
