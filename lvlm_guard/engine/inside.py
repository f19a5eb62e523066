"""What a method does inside the global branch's calls: it steers them, and reads the layers that it names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from lvlm_guard.engine.call import Call
from lvlm_guard.engine.method import Method, Step
from lvlm_guard.engine.steering import Pass
from lvlm_guard.errors import KnobError, UnsupportedModelError


class Inside:
    """The layers of the global branch's calls of one `generate()` call; `acts` where the method does anything there."""

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

                stack.enter_context(decoder.tapped(layers, see))
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
