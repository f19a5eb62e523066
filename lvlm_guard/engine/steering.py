"""What acts inside a model call: the decoder's layers, read or edited (their attention: `engine/attention.py`).

Everything here holds for one model call of one branch, in this thread: hooks are on for that call alone and inert for
other threads. What is changed is at positions that predict a token of the answer (`Pass.count`), or at all that the
call reads. A position's change may depend on the tokens before it, never on how many of them a call reads, so that
drafts, chunks and catching up compute the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lvlm_guard.errors import KnobError, UnsupportedCallError, UnsupportedModelError

if TYPE_CHECKING:
    from lvlm_guard.engine.call import Call
    from lvlm_guard.engine.method import Method, Step

INSTEAD = "Use a method that assembles logits, such as 'agla'."


@dataclass
class Pass:
    """One model call of one branch, as what steers it sees it."""

    call: Call  # what the `generate()` call is about
    ids: Tensor  # the whole rows, those of this call among them, [R, T]
    done: int  # tokens of each row that the cache held before
    prompt: int  # tokens of the prompt; its last one predicts the answer's first
    request: list[int]  # which request each row belongs to
    mask: Tensor | None = None  # which tokens are no padding, [R, T]; None: all

    @property
    def count(self) -> int:
        """How many of the positions that this call reads predict a token of the answer; they are its last ones."""
        return max(self.ids.shape[1] - max(self.done, self.prompt - 1), 0)

    @cached_property
    def guarded(self) -> Tensor | None:
        """Which rows show a picture, [R] bool; None where all do. The others are never changed."""
        return self.call.guarded(self.request, self.ids.device)

    def placed(self, given: Tensor, new: Tensor) -> Tensor:
        """Return what a module gives, [R, T, ...], with new last places, [R, n, ...], where rows show a picture."""
        start, new = given.shape[1] - new.shape[1], new.to(given.dtype)
        if self.guarded is not None:
            shown = self.guarded.to(new.device).view(-1, *[1] * (new.ndim - 1))
            new = torch.where(shown, new, given[:, start:])
        return torch.cat([given[:, :start], new], 1) if start else new

    @cached_property
    def rows(self) -> Tensor:
        """Which request each row belongs to, [R]."""
        return torch.tensor(self.request)

    def columns(self, prompts: Tensor) -> Tensor:
        """Return marks of the prompts [B, prompt] for these rows [R, T], False over the answer."""
        rows = prompts[self.rows.to(prompts.device)].to(self.ids.device)
        return torch.nn.functional.pad(rows, (0, self.ids.shape[1] - rows.shape[1]))

    def prompts(self, given: Tensor) -> Tensor:
        """Return the prompts' states [R, prompt, D] of what a layer gives in a call that reads from the start.

        Raises `UnsupportedModelError` where it gives fewer; layers that take others' keys and values may skip a prompt.
        """
        if given.shape[1] < self.prompt:
            raise UnsupportedModelError(
                f"A layer of this {type(self.call.model).__name__} gives states of {given.shape[1]} of the prompt's "
                f"{self.prompt} tokens, and this method learns from all of them. {INSTEAD}"
            )
        return given[:, : self.prompt]

    def from_the_start(self) -> bool:
        """Tell whether this call reads the whole prompt; raises `UnsupportedCallError` where it begins within it."""
        if 0 < self.done < self.prompt:
            raise UnsupportedCallError(
                "This method learns from the hidden states of the whole prompt, but past_key_values holds a part of it "
                "already. Pass the conversation without past_key_values, or use a method without a calibration."
            )
        return self.done == 0


def check_span(low: float, high: float, names: str = "layers_from, layers_to") -> None:
    """Raise `KnobError` unless two shares of the depth lie in order between 0 and 1."""
    if not 0 <= low < high <= 1:
        raise KnobError(f"{names} are {low!r}, {high!r}: give shares of the depth, the first one less, from 0 to 1.")


def span(low: float, high: float, depth: int) -> range:
    """Return the layers between two shares of the depth, at least one."""
    first = min(round(low * depth), depth - 1)
    return range(first, max(round(high * depth), first + 1))


class Decoder:
    """The language model's layers, its last norm and its head; raises `UnsupportedModelError` without them."""

    def __init__(self, model: Any) -> None:
        decoder = model.get_decoder()
        while not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
            inner = decoder.get_decoder() if hasattr(decoder, "get_decoder") else decoder
            inner = getattr(inner, "model", inner) if inner is decoder else inner
            if inner is decoder:
                raise UnsupportedModelError(
                    f"{type(model).__name__} has no list of decoder layers where transformers' models have it, so this "
                    f"method can't act in them. {INSTEAD}"
                )
            decoder = inner
        self.layers: nn.ModuleList = decoder.layers
        self.width: int | None = getattr(model.config.get_text_config(decoder=True), "hidden_size", None)
        norms = (getattr(decoder, name, None) for name in ("norm", "final_layernorm", "norm_f"))
        self.norm: Any = next((norm for norm in norms if norm is not None), nn.Identity())
        self.head: Any = model.get_output_embeddings() or getattr(model.get_decoder(), "lm_head", None)

    def __len__(self) -> int:
        return len(self.layers)

    def within(self, layers: Sequence[int]) -> list[int]:
        """Return layers by their numbers, negative ones from the end; raises `KnobError` where one is not there."""
        count = len(self.layers)
        if any(not -count <= layer < count for layer in layers):
            raise KnobError(
                f"layers are {list(layers)}, but this model has {count}: give numbers from 0 to {count - 1}."
            )
        return [layer % count for layer in layers]

    def part(self, layer: int, *names: str) -> nn.Module:
        """Return a part of a layer by the first of these names that it has; raises `UnsupportedModelError`."""
        found = next((part for name in names if (part := getattr(self.layers[layer], name, None)) is not None), None)
        if isinstance(found, nn.Module):
            return found
        raise UnsupportedModelError(
            f"Layer {layer}, a {type(self.layers[layer]).__name__}, has no {' or '.join(names)}, in which this method "
            f"acts. {INSTEAD}"
        )

    def parts(self, *names: str) -> list[nn.Module]:
        """Return that part of every layer; raises as `part` does."""
        return [self.part(layer, *names) for layer in range(len(self))]

    def attention(self, layer: int) -> nn.Module:
        """Return a layer's attention; raises as `part` does."""
        return self.part(layer, "self_attn", "attention", "attn")

    def edited(
        self, layers: Sequence[int], change: Callable[[int, Tensor], Tensor | None], passed: Pass | None = None
    ) -> AbstractContextManager[None]:
        """Change what layers give, [R, n, D], or look at it, by their place in the sequence, as `edited` of modules.

        In the call it raises `UnsupportedModelError` where one gives not one state a token, but several streams.
        """

        def changed(index: int, found: Tensor) -> Tensor | None:
            if self.width not in (None, found.shape[-1]):
                raise UnsupportedModelError(
                    f"A {type(self.layers[layers[index]]).__name__} gives {found.shape[-1]} numbers a token, not one "
                    f"state of {self.width}, so this method can't read it. Use one that reads none, such as 'agla'."
                )
            return change(index, found)

        return edited([self.layers[layer] for layer in layers], changed, passed)

    def lens(self, hidden: Tensor, norm: bool = True) -> Tensor:
        """Return the logits that the head reads from hidden states, [..., D] -> [..., V]; raises without a head."""
        if self.head is None:
            raise UnsupportedModelError("The model names no head (get_output_embeddings), so no layer is read by it.")
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
                f"this method can't act in it. {INSTEAD}"
            )
        start = 0 if everywhere or passed is None else found.shape[1] - passed.count
        new = change(index, found[:, start:]) if start < found.shape[1] else None
        if new is None:
            return None
        new = new if passed is None else passed.placed(found, new)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    with ExitStack() as stack:
        for index, module in enumerate(modules):
            handle = module.register_forward_hook(lambda _, __, output, index=index: hook(index, output))
            stack.callback(handle.remove)
        yield


class Inside:
    """What a method does in the global branch's calls of one `generate()` call: it steers them, and reads their layers.

    `acts` tells whether it does anything there.
    """

    def __init__(self, call: Call, method: Method) -> None:
        self.call, self.method = call, method
        self._layers = method.layers(call) if call.trace.guarded else ()
        self.acts = call.trace.guarded and (method.steers or bool(self._layers))
        self._held: dict[int, Tensor] = {}  # what they gave in this step
        self._right = not self._layers  # whether the head is as we read it

    @contextmanager
    def acting(self, passed: Pass) -> Iterator[None]:
        """Steer one of the calls, and keep what the method reads of it."""
        with ExitStack() as stack:
            if self._layers:
                decoder, n = self.call.decoder, max(passed.count, 1)
                held = self._held = {}
                layers = [*decoder.within(self._layers), len(decoder) - 1]  # by the last one the head is checked

                def see(index: int, given: Tensor) -> None:
                    held[layers[index]] = given[:, -n:]

                stack.enter_context(decoder.edited(layers, see))
            if self.method.steers:
                stack.enter_context(self.method.around(passed))
            yield

    def states(self, count: int) -> Callable[[int], Tensor]:
        """Return what gives a layer's output of this step at the last `count` positions, [R * count, D]."""
        held = self._held

        def hidden(layer: int) -> Tensor:
            if layer not in held:
                raise KnobError(f"Step.hidden({layer}): layers() of {self.method.name} does not name this layer.")
            return held[layer][:, -count:].flatten(0, 1)

        return hidden

    def check(self, step: Step) -> None:
        """Raise `UnsupportedModelError`, at the first step, where the logits are no norm and head of the last layer."""
        if self._right:
            return
        decoder, wide = self.call.decoder, step.raw.dtype.itemsize > 2
        read = decoder.lens(step.hidden(len(decoder) - 1)).to(step.logits)
        close = (1e-3 if wide else 0.05) * float(step.logits.abs().max())
        if not torch.allclose(read, step.logits, rtol=0, atol=close):
            raise UnsupportedModelError(
                f"{type(self.call.model).__name__} makes its logits otherwise than by a norm and a head over its last "
                f"layer, so {self.method.name} can't read its early layers. Use a method that assembles whole logits, "
                "such as 'agla'."
            )
        self._right = True
