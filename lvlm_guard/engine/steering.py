"""What acts inside a model call: the decoder's layers read, edited, or given other attention scores.

Everything here holds for one model call of one branch, in this thread: hooks are on for that call alone and inert for
other threads. What is changed is at positions that predict a token of the answer (`Pass.count`), or at all that the
call reads. A position's change may depend on the tokens before it, never on how many of them a call reads, so that
drafts, chunks and catching up compute the same.

Attention goes through transformers' `AttentionInterface`: its functions are wrapped while a call rescores, whatever the
kernel, and the few rows that are rescored are computed again from the same queries, keys and values.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lvlm_guard.errors import KnobError, UnsupportedCallError, UnsupportedModelError

if TYPE_CHECKING:
    from lvlm_guard.engine.call import Call


@dataclass
class Pass:
    """One model call of one branch, as what steers it sees it.

    Args:
        call: what the `generate()` call is about.
        ids: the whole rows, those of this call among them, [R, T].
        done: tokens of each row that the cache held before.
        prompt: tokens of the prompt; its last one predicts the answer's first.
        request: which request each row belongs to.
        mask: which tokens are no padding, [R, T]; None: all.
    """

    call: Call
    ids: Tensor
    done: int
    prompt: int
    request: list[int]
    mask: Tensor | None = None

    @property
    def count(self) -> int:
        """How many of the positions that this call reads predict a token of the answer; they are its last ones."""
        return max(self.ids.shape[1] - max(self.done, self.prompt - 1), 0)

    @cached_property
    def guarded(self) -> Tensor | None:
        """Which rows show a picture, [R] bool; None where all do. The others are never changed."""
        if all(self.call.has_picture):
            return None
        return torch.tensor([self.call.has_picture[request] for request in self.request], device=self.ids.device)

    @cached_property
    def rows(self) -> Tensor:
        """Which request each row belongs to, [R]."""
        return torch.tensor(self.request)

    def columns(self, prompts: Tensor) -> Tensor:
        """Return marks of the prompts [B, prompt] for these rows [R, T], False over the answer."""
        rows = prompts[self.rows.to(prompts.device)].to(self.ids.device)
        return torch.nn.functional.pad(rows, (0, self.ids.shape[1] - rows.shape[1]))

    def from_the_start(self) -> bool:
        """Tell whether this call reads the whole prompt.

        Raises:
            UnsupportedCallError: it begins within the prompt, whose first part nobody saw.
        """
        if 0 < self.done < self.prompt:
            raise UnsupportedCallError(
                "This method learns from the hidden states of the whole prompt, but past_key_values holds a part of it "
                "already. Pass the conversation without past_key_values, or use a method without a calibration."
            )
        return self.done == 0


class Decoder:
    """The language model's layers, its last norm and its head.

    Raises:
        UnsupportedModelError: the model does not say where they are.
    """

    def __init__(self, model: Any) -> None:
        decoder = model.get_decoder()
        while not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
            inner = decoder.get_decoder() if hasattr(decoder, "get_decoder") else decoder
            inner = getattr(inner, "model", inner) if inner is decoder else inner
            if inner is decoder:
                raise UnsupportedModelError(
                    f"{type(model).__name__} has no list of decoder layers where transformers' models have it, so this "
                    "method can't act in them. Use one that assembles logits, such as 'agla'."
                )
            decoder = inner
        self.layers: nn.ModuleList = decoder.layers
        self.norm: Any = getattr(decoder, "norm", None) or getattr(decoder, "final_layernorm", nn.Identity())
        self.head: Any = model.get_output_embeddings()

    def __len__(self) -> int:
        return len(self.layers)

    def within(self, layers: Sequence[int]) -> list[int]:
        """Return layers by their numbers, negative ones counted from the end.

        Raises:
            KnobError: the model has no such layer.
        """
        count = len(self.layers)
        if any(not -count <= layer < count for layer in layers):
            raise KnobError(
                f"layers are {list(layers)}, but this model has {count}: give numbers from 0 to {count - 1}."
            )
        return [layer % count for layer in layers]

    def part(self, layer: int, *names: str) -> nn.Module:
        """Return a part of a layer by the first of these names that it has.

        Raises:
            UnsupportedModelError: it has none, such as a layer of linear attention.
        """
        for name in names:
            found = getattr(self.layers[layer], name, None)
            if isinstance(found, nn.Module):
                return found
        raise UnsupportedModelError(
            f"Layer {layer}, a {type(self.layers[layer]).__name__}, has no {' or '.join(names)}, in which this method "
            "acts. Name other layers, or use a method that assembles logits, such as 'agla'."
        )

    def attention(self, layer: int) -> nn.Module:
        """Return a layer's attention; raises as `part` does."""
        return self.part(layer, "self_attn", "attention", "attn")

    def lens(self, hidden: Tensor, norm: bool = True) -> Tensor:
        """Return the logits that the head reads from hidden states, [..., D] -> [..., V]."""
        logits: Tensor = self.head(self.norm(hidden) if norm else hidden)
        return logits

    def words(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits of some tokens [n] that the head reads from normed states, [..., D] -> [..., n]."""
        head = self.head
        if type(head) is nn.Linear and head.weight.device == hidden.device:  # else it may be offloaded, or no matrix
            chosen = tokens.to(hidden.device)
            return nn.functional.linear(hidden, head.weight[chosen], None if head.bias is None else head.bias[chosen])
        logits: Tensor = head(hidden)
        return logits[..., tokens.to(logits.device)]


@contextmanager
def tapped(modules: Sequence[nn.Module], see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Show what modules give, [R, n, D], by their place in the sequence."""

    def seen(index: int, found: Tensor) -> None:
        see(index, found)

    with edited(modules, seen):
        yield


@contextmanager
def edited(
    modules: Sequence[nn.Module],
    change: Callable[[int, Tensor], Tensor | None],
    passed: Pass | None = None,
    everywhere: bool = False,
) -> Iterator[None]:
    """Change what modules give, [R, n, D], by their place in the sequence; None leaves it.

    Args:
        modules: each gives a tensor, or a tuple that begins with one.
        change: makes the new one; it sees the positions that predict a token of the answer.
        passed: the model call; rows without a picture stay. None: there are only such with one.
        everywhere: whether `change` sees all the positions that the call reads.
    """
    thread = threading.get_ident()

    def hook(index: int, output: Any) -> Any:
        if threading.get_ident() != thread:
            return None
        found = output[0] if isinstance(output, tuple) else output
        if found.ndim != 3:
            raise UnsupportedModelError(
                f"A {type(modules[index]).__name__} gives states of {found.ndim} axes, not one state a token, so "
                "this method can't act in it. Use one that assembles logits, such as 'agla'."
            )
        start = 0 if everywhere or passed is None else found.shape[1] - passed.count
        new = change(index, found[:, start:]) if start < found.shape[1] else None
        if new is None:
            return None
        if passed is not None and passed.guarded is not None:
            new = torch.where(passed.guarded[:, None, None], new, found[:, start:])
        new = torch.cat([found[:, :start], new.to(found.dtype)], 1)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    with ExitStack() as stack:
        for index, module in enumerate(modules):
            handle = module.register_forward_hook(lambda _, __, output, index=index: hook(index, output))
            stack.callback(handle.remove)
        yield


@dataclass
class Rows:
    """Attention scores of the last `n` positions of a call, as what rescores them sees them.

    Args:
        index: place of the layer in the sequence.
        first: position of the first column in the rows; above 0 where a sliding window has let go of those before.
        scores: scaled, before mask and softmax, [R, heads, n, columns], float32 or wider.
        closed: what a position can't see, [R or 1, 1, n, columns] bool.
        values: of the columns, [R, heads, columns, size].
    """

    index: int
    first: int
    scores: Tensor
    closed: Tensor
    values: Tensor

    def weights(self) -> Tensor:
        """Return the attention weights, [R, heads, n, columns]."""
        return self.scores.masked_fill(self.closed, -torch.inf).softmax(-1)


@dataclass
class _Plan:
    layers: dict[nn.Module, int]
    change: Callable[[Rows], Tensor | None]
    passed: Pass
    seen: set[int]


_PLAN: ContextVar[_Plan | None] = ContextVar("lvlm_guard_attention", default=None)
_LOCK = threading.Lock()
_WRAPPED: dict[str, int] = {}  # by the kernel's name: how many calls rescore now


@contextmanager
def rescored(
    passed: Pass, decoder: Decoder, layers: Sequence[int], change: Callable[[Rows], Tensor | None]
) -> Iterator[None]:
    """Give some layers other attention scores at the positions that predict a token of the answer.

    Args:
        passed: the model call.
        decoder: whose layers.
        layers: their numbers.
        change: makes the new scores [R, heads, n, columns], masked afterwards; None leaves the layer's output as the
            kernel gave it, bit for bit (for one who only looks).

    Raises:
        UnsupportedModelError: a layer has no softmax attention, or one that transformers' interface does not show.
    """
    if passed.count == 0:
        yield
        return
    modules = {decoder.attention(layer): index for index, layer in enumerate(layers)}
    plan = _Plan(modules, change, passed, set())
    configs = [getattr(module, "config", None) for module in modules]  # linear attention has none, and is refused below
    names = {str(getattr(config, "_attn_implementation", "eager")) for config in configs}
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(_wrapped(name))
        stack.callback(_PLAN.reset, _PLAN.set(plan))
        yield
        if len(plan.seen) < len(modules):
            missing = next(
                layer for layer, module in zip(layers, modules, strict=True) if modules[module] not in plan.seen
            )
            raise UnsupportedModelError(
                f"The attention of layer {missing} ({type(decoder.attention(missing)).__name__}) does not go through "
                "transformers' AttentionInterface, so its scores can't be changed. Use a method that assembles logits, "
                "such as 'agla'."
            )


@contextmanager
def _wrapped(name: str) -> Iterator[None]:
    """Wrap one of transformers' attention functions as long as any call rescores."""
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
    plan = _PLAN.get()
    if plan is None or module not in plan.layers:
        return output, *rest
    plan.seen.add(plan.layers[module])
    for name in ("s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise UnsupportedModelError(
                f"{type(module).__name__} computes attention with {name!r}, which this method does not know. Use one "
                "that assembles logits, such as 'agla'."
            )
    n, groups = plan.passed.count, query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, 1) for each in (key, value))
    wide = torch.promote_types(query.dtype, torch.float32)
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    scores = (query[:, :, -n:].to(wide) @ key.transpose(2, 3).to(wide)) * scale
    if kwargs.get("softcap") is not None:
        scores = (scores / kwargs["softcap"]).tanh() * kwargs["softcap"]
    first = plan.passed.ids.shape[1] - scores.shape[-1]
    rows = Rows(
        plan.layers[module], first, scores, _closed(attention_mask, scores, kwargs.get("sliding_window")), value
    )
    changed = plan.change(rows)
    if changed is None:
        return output, *rest
    rows.scores = changed
    new = (rows.weights() @ value.to(wide)).transpose(1, 2).to(output.dtype)  # [R, n, heads, size]
    if plan.passed.guarded is not None:
        new = torch.where(plan.passed.guarded[:, None, None, None], new, output[:, -n:])
    return torch.cat([output[:, :-n], new], 1), *rest


def _closed(mask: Tensor | None, scores: Tensor, window: int | None) -> Tensor:
    """Return what the last rows can't see, [R or 1, 1, n, columns] bool, of any mask that a kernel takes."""
    n, columns = scores.shape[2:]
    if mask is not None and mask.ndim == 4:
        rows = mask[:, :, -n:, :columns]
        return ~rows if rows.dtype == torch.bool else rows <= torch.finfo(rows.dtype).min / 2
    place = torch.arange(columns, device=scores.device)
    at = place[-n:, None]
    closed = place > at
    if window is not None:
        closed |= place <= at - window
    closed = closed[None, None]
    return closed if mask is None else closed | ~mask[:, None, None, -columns:].bool()
