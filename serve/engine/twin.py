"""Attention layers with a second KV cache.

The batch that reaches the decoder has 2n rows: n of the global branch, then the same n positions of the
second one. Projections, norms and rotary embeddings just see a longer batch; only attention must keep the
halves apart. vLLM sees two ordinary attention layers for each one, all in one group of caches, so that both
share block tables, prefix-cache hits and preemption by construction.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_guard.errors import UnsupportedModelError
from lvlm_guard.serve.engine.insides import Attention, AttentionLayerBase, AttentionType

SUFFIX = ".twin"


class TwinAttention(Attention):  # type: ignore[misc]  # vllm is untyped here
    """An attention layer that was given a twin; its weights keep the checkpoint's names."""

    twin: Attention

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the attention of both branches, [2n, ...]: each half through its own cache."""
        n = len(query) // 2
        layer: Any = super()
        first = layer.forward(query[:n], key[:n], value[:n], *args, **kwargs)
        return torch.cat([first, self.twin(query[n:], key[n:], value[n:], *args, **kwargs)])


@contextmanager
def building_twins() -> Iterator[None]:
    """Give a twin to every decoder layer of attention that is built meanwhile.

    The hook is on the constructor since a layer does not keep the arguments it was made from.
    """
    plain = Attention.__init__
    inside = False

    def build(self: Any, *args: Any, prefix: str = "", **kwargs: Any) -> None:
        nonlocal inside
        plain(self, *args, prefix=prefix, **kwargs)
        if inside or type(self) is not Attention or self.attn_type != AttentionType.DECODER:
            return
        if self.kv_sharing_target_layer_name is not None:
            raise UnsupportedModelError(f"{prefix} shares its KV cache with another layer, and has no twin for that.")
        inside = True
        try:
            self.twin = Attention(*args, prefix=prefix + SUFFIX, **kwargs)
        finally:
            inside = False
        self.__class__ = TwinAttention

    Attention.__init__ = build
    try:
        yield
    finally:
        Attention.__init__ = plain


def check_twins(decoder: nn.Module) -> None:
    """Raise `UnsupportedModelError` where a layer that keeps state has no twin: its branches would mix."""
    twins = [module for module in decoder.modules() if isinstance(module, TwinAttention)]
    covered = {id(layer) for twin in twins for layer in (twin, twin.twin)}
    single = [
        f"{name} ({type(module).__name__})"
        for name, module in decoder.named_modules()
        if isinstance(module, AttentionLayerBase) and id(module) not in covered
    ]
    if single or not twins:
        raise UnsupportedModelError(
            f"Layers of this decoder keep state and have no twin: {', '.join(single) or 'no attention was found'}. "
            "Serve the model with --guards vote, which needs none."
        )
    if any(twin.use_mm_prefix and not twin.attn_backend.supports_mm_prefix() for twin in twins):
        raise UnsupportedModelError(
            f"This decoder reads its pictures both ways, and {twins[0].attn_backend.get_name()} reads all causally, so "
            "that answers would be another model's than in transformers. Serve it on a GPU."
        )
