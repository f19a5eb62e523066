"""Where bfloat16 is too coarse: sums of exponentials, differences of near-equal pictures, and the last number."""

from __future__ import annotations

import torch
from torch import Tensor


def full(tensor: Tensor) -> Tensor:
    """Return a half-precision tensor as float32, any other as it is."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def unchanged(tensor: Tensor) -> torch.autocast:
    """Return a context in which autocast leaves dtypes alone, on the device of a tensor."""
    return torch.autocast(tensor.device.type, enabled=False)
