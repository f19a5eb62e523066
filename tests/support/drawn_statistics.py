"""Statistics drawn at random for a tiny model, of each method that needs some: its promises hold for any."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lvlm_guard.measured import Statistics, identity


def _revis(layers: int, size: int, heads: int) -> dict[str, Tensor]:
    return {
        "u": 3 * torch.randn(layers, size), "risk": torch.randn(8, layers) / 10,
        "risk_made_up": torch.randn(8, layers) / 10, "layer": torch.tensor(1),
    }  # fmt: skip


def _vti(layers: int, size: int, heads: int) -> dict[str, Tensor]:
    return {"text": torch.randn(layers, size)}


def _adaiat(layers: int, size: int, heads: int) -> dict[str, Tensor]:
    return {"real": torch.rand(layers, heads) / 4, "hallucinated": torch.rand(layers, heads) / 4}


DRAWN = {"adaiat": _adaiat, "revis": _revis, "vti": _vti}


def drawn(name: str, model: Any) -> Statistics:
    """Return statistics that fit the model, always the same ones."""
    text = model.config.get_text_config()
    rng = torch.random.get_rng_state()
    torch.manual_seed(0)
    tensors = DRAWN[name](text.num_hidden_layers, text.hidden_size, text.num_attention_heads)
    torch.random.set_rng_state(rng)
    return Statistics(tensors, {"method": name, **identity(model)})
