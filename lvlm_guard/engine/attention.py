"""A layer's attention, looked at or changed at the few positions that predict a token of the answer.

Attention goes through transformers' `AttentionInterface`: its functions are wrapped while a call needs it, whatever the
kernel. Either the scores are changed, and the few rows computed again from the same queries, keys and values; or what
the heads give is, from what the kernel gave and the values.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lvlm_guard.engine.call import Call
from lvlm_guard.engine.method import Steering
from lvlm_guard.engine.steering import INSTEAD, Decoder, Pass, check_span, span
from lvlm_guard.errors import UnsupportedModelError


@dataclass
class Rows:
    """The attention of the last `n` positions of a call."""

    index: int  # place of the layer in the sequence
    first: int  # position of the first column in the rows; above 0 where a sliding window has let go of those before
    closed: Tensor  # what a position can't see, [R or 1, 1, n, columns] bool
    given: Tensor  # what the heads give, before they are joined, [R, heads, n, size], float32 or wider
    values: Tensor  # of the columns, [R, heads or fewer, columns, size]: neighbouring heads may share theirs
    score: Callable[[], Tensor]  # computes `scores`

    @cached_property
    def scores(self) -> Tensor:
        """Scaled, before mask and softmax, [R, heads, n, columns]."""
        return self.score()

    def weights(self, scores: Tensor | None = None) -> Tensor:
        """Return the attention weights, [R, heads, n, columns], of other scores where given."""
        return (self.scores if scores is None else scores).masked_fill(self.closed, -torch.inf).softmax(-1)

    def heads(self, scores: Tensor) -> Tensor:
        """Return what the heads give by other scores, masked here, [R, heads, n, columns] -> [R, heads, n, size]."""
        return self.mixed(self.weights(scores))

    def since(self, position: int) -> Tensor:
        """Mark the columns from a position of the rows on, [columns] bool."""
        return torch.arange(self.first, self.first + self.closed.shape[-1], device=self.closed.device) >= position

    def paid(self, columns: Tensor) -> Tensor:
        """Return the mean weight of those marked columns [columns] that a position sees, [R, heads, n]; 0 for none."""
        return (self.weights() * columns).sum(-1) / (columns & ~self.closed).sum(-1).clamp(min=1)

    def mixed(self, weights: Tensor) -> Tensor:
        """Return the values by some weights, [R, heads or 1, n, columns] -> [R, heads, n, size]."""
        shared, values = self.given.shape[1] // self.values.shape[1], self.values.to(weights.dtype)
        if weights.shape[1] == 1:
            return (weights @ values).repeat_interleave(shared, 1)
        return weights @ values.repeat_interleave(shared, 1)


_ACTS: ContextVar[Callable[..., Tensor] | None] = ContextVar("lvlm_guard_attention", default=None)
"""Makes of a layer's attention, its inputs and output, what it is to give in this thread."""
_LOCK = threading.Lock()
_WRAPPED: dict[str, int] = {}  # by the kernel's name: how many calls need it now


@contextmanager
def attending(
    passed: Pass, decoder: Decoder, layers: Sequence[int], change: Callable[[Rows], Tensor | None]
) -> Iterator[None]:
    """Change some layers' attention at the positions that predict a token of the answer.

    Args:
        passed: the model call.
        decoder: whose layers.
        layers: their numbers.
        change: makes what the heads give, [R, heads, n, size], such as `Rows.heads` of new scores; None leaves the
            layer's output as the kernel gave it, bit for bit (for one who looks).

    Raises:
        UnsupportedModelError: a layer has no softmax attention, or one that transformers' interface does not show.
    """
    if passed.count == 0:
        yield
        return
    modules = {decoder.attention(layer): index for index, layer in enumerate(layers)}
    left, n = dict(modules), passed.count

    def act(
        module: nn.Module, output: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, told: Any
    ) -> Tensor:
        if module not in modules:
            return output
        left.pop(module, None)
        wide = torch.promote_types(query.dtype, torch.float32)

        def score() -> Tensor:
            for name in ("s_aux", "position_bias"):
                if told.get(name) is not None:
                    raise UnsupportedModelError(
                        f"{type(module).__name__} computes attention with {name!r}, which this method does not know. "
                        f"{INSTEAD}"
                    )
            keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1).transpose(2, 3).to(wide)
            scores: Tensor = (query[:, :, -n:].to(wide) @ keys) * (told.get("scaling") or query.shape[-1] ** -0.5)
            if told.get("softcap") is not None:
                scores = (scores / told["softcap"]).tanh() * told["softcap"]
            return scores

        closed = _closed(mask, n, key, told.get("sliding_window"))
        given, first = output[:, -n:].transpose(1, 2).to(wide), passed.ids.shape[1] - key.shape[2]
        changed = change(Rows(modules[module], first, closed, given, value, score))
        return output if changed is None else passed.placed(output, changed.transpose(1, 2))  # [R, n, heads, size]

    configs = (getattr(module, "config", None) for module in modules)  # linear attention has none, and is refused below
    names = {str(getattr(config, "_attn_implementation", "eager")) for config in configs}
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(_wrapped(name))
        stack.callback(_ACTS.reset, _ACTS.set(act))
        yield
        for module, index in left.items():
            raise UnsupportedModelError(
                f"The attention of layer {layers[index]} ({type(module).__name__}) does not go through "
                f"transformers' AttentionInterface, so its scores can't be changed. {INSTEAD}"
            )


class Attending(Steering):
    """A method that acts in the attention of some layers; subclasses have both fields, shares of the depth, 0 to 1."""

    layers_from: float
    layers_to: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_span(self.layers_from, self.layers_to)

    def check(self, call: Call) -> None:
        """Raise `UnsupportedModelError` where the model's layers can't be found, or have no attention."""
        for layer in self.span(call):
            call.decoder.attention(layer)

    def span(self, call: Call) -> range:
        """Return the layers, at least one."""
        return span(self.layers_from, self.layers_to, len(call.decoder))


@contextmanager
def _wrapped(name: str) -> Iterator[None]:
    """Wrap one of transformers' attention functions as long as any call needs it."""
    with _LOCK:
        if not _WRAPPED.get(name):
            kernel = ALL_ATTENTION_FUNCTIONS.get(name)
            ALL_ATTENTION_FUNCTIONS[name] = lambda module, *args, **kwargs: _attend(kernel, module, *args, **kwargs)
        _WRAPPED[name] = _WRAPPED.get(name, 0) + 1
    try:
        yield
    finally:
        with _LOCK:
            _WRAPPED[name] -= 1
            if not _WRAPPED[name]:
                del ALL_ATTENTION_FUNCTIONS[name]


def _attend(
    kernel: Callable[..., Any] | None,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> Any:
    kernel = kernel or sys.modules[type(module).__module__].eager_attention_forward  # eager is each family's own
    output, *rest = kernel(module, query, key, value, attention_mask, **kwargs)
    act = _ACTS.get()
    return output if act is None else act(module, output, query, key, value, attention_mask, kwargs), *rest


def _closed(mask: Tensor | None, n: int, key: Tensor, window: int | None) -> Tensor:
    """Return what the last n rows can't see, [R or 1, 1, n, columns] bool, of any mask that a kernel takes."""
    columns = key.shape[2]
    if mask is not None and mask.ndim == 4:
        rows = mask[:, :, -n:, :columns]
        return ~rows if rows.dtype == torch.bool else rows <= torch.finfo(rows.dtype).min / 2
    place = torch.arange(columns, device=key.device)
    at = place[-n:, None]
    closed = place > at
    if window is not None:
        closed |= place <= at - window
    closed = closed[None, None]
    return closed if mask is None else closed | ~mask[:, None, None, -columns:].bool()
