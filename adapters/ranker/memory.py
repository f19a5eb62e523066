"""What the pair head holds in memory, and what the published form would: measured by `python -m` of this folder."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch import Tensor

from lvlm_guard.adapters.ranker.pair_head import PairHead
from lvlm_guard.adapters.ranker.settings import RankerSettings
from lvlm_guard.bench.memory import peak_meter


def attention(head: PairHead, tokens: Tensor) -> None:
    """Find each picture's evidence and content, and their gradients."""
    evidence, content = head.attended(tokens.requires_grad_())
    (evidence.sum() + content.sum()).backward()


def table(head: PairHead, tokens: Tensor) -> None:
    """Compare all pictures, without gradients."""
    with torch.no_grad():
        head(tokens)


def training(head: PairHead, tokens: Tensor) -> None:
    """Compare all pictures, and take the gradients."""
    head(tokens.requires_grad_()).square().sum().backward()


WORK: dict[str, Callable[[PairHead, Tensor], None]] = {"attention": attention, "table": table, "training": training}
"""What is measured."""


def alone(work: str, pictures: int, tokens: int, width: int, device: str = "cpu") -> float:
    """Return `peak` of a fresh process, which has no freed memory to use again."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(peak, work, pictures, tokens, width, device).result()


def peak(work: str, pictures: int, tokens: int, width: int, device: str) -> float:
    """Return the peak of a piece of `WORK` above the pictures' tokens, in MiB."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    head = PairHead(RankerSettings(width=width)).to(device)
    WORK[work](head, torch.randn(2, tokens, width, device=device))  # libraries load what they need
    given = torch.randn(pictures, tokens, width, device=device)
    read = peak_meter(torch.device(device))
    before = read()
    WORK[work](head, given)
    return read() - before


def published(pictures: int, tokens: int, width: int) -> tuple[int, int]:
    """Return bytes of (keys, attention) over all ordered pairs, as the release holds them at once."""
    settings = RankerSettings(width=width)
    each = pictures**2 * 2 * tokens * 4
    return each * width, each * settings.heads * settings.relations
