"""The logits processors: AGLA, VCD and APC over a twin, APC alone over any model, by the transformers engine's algebra.

A forbidden token arrives with -inf, the cut is taken over what is still allowed, and -inf plus a weight stays -inf.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from lvlm_guard.engine.method import Method, Step
from lvlm_guard.serve.assembling import assemble
from lvlm_guard.serve.engine.arguments import method_of
from lvlm_guard.serve.engine.handover import Handover, open_handover
from lvlm_guard.serve.engine.plugin import TWINS
from lvlm_guard.serve.engine.refuse import WHY
from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.logits import Rows
from lvlm_guard.serve.overruled import preferred_others


class Guards(Rows):
    """Assembles the rows of guarded requests and leaves the others as they are."""

    def __init__(self, vllm_config: Any, device_or_states: Any, is_pin_memory: bool | None = None) -> None:
        super().__init__(vllm_config, device_or_states, is_pin_memory)
        self._handover = self._opened(vllm_config)

    def _opened(self, vllm_config: Any) -> Handover | None:
        if not set(TWINS) & set(vllm_config.model_config.architectures):
            raise ServeError(
                "This engine has no second branch, so that its guards would do nothing. Set hf_overrides to "
                f'{{"architectures": [one of {", ".join(TWINS)}]}}.'
            )
        return open_handover(vllm_config)

    @classmethod
    def read(cls, params: Any) -> Method | None:
        """Return the method that a request asks for; see `Rows`."""
        method = method_of(params.extra_args)
        if method is not None and params.prompt_logprobs is not None:
            raise ServeError("prompt_logprobs would be the plain model's, not the guard's: leave it out.")
        return method

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Return the logits with those of guarded rows assembled, in place.

        Args:
            logits: global logits, [rows, V] float32.
            ctx: which slot a row belongs to (V2).
        """
        second = None if self._handover is None else self._handover.take(len(logits))
        groups: dict[Method, list[int]] = {}
        for row, method in self.guarded(logits, ctx).items():
            groups.setdefault(method, []).append(row)
        for method, rows in groups.items():
            assemble(logits, rows, partial(self._assembled, method, logits, second, ctx))
        return logits

    def _assembled(
        self, method: Method, logits: Tensor, second: Tensor | None, ctx: Any, rows: list[int], index: Any
    ) -> Tensor:
        plain = logits[index]
        made = assembled(method, plain, None if second is None else second[index])
        self.count(method.name, ctx, rows, None if self._overruled is None else preferred_others(made, plain))
        return made


class Cut(Guards):
    """APC over any model as it is: the method needs the model's own logits and nothing else."""

    def _opened(self, vllm_config: Any) -> None:
        if vllm_config.speculative_config is not None:
            raise ServeError(WHY["speculative"])
        if vllm_config.model_config.logprobs_mode != "processed_logprobs":
            raise ServeError(WHY["logprobs"])

    @classmethod
    def read(cls, params: Any) -> Method | None:
        """Return the method that a request asks for; see `Rows`."""
        method = super().read(params)
        if method is not None and method.branches():
            raise ServeError(f"{method.name} needs a second branch, and this engine has none: serve it by its twin.")
        return method


def assembled(method: Method, logits: Tensor, second: Tensor | None) -> Tensor:
    """Return the assembled logits of rows that one method guards.

    Args:
        method: one of `arguments.TWIN` in its paper mode, which looks at logits alone.
        logits: global logits, [rows, V] float32.
        second: the second branch's, [rows, V] in any dtype; None where there is none.
    """
    rows = len(logits)
    first_tokens = torch.ones(rows, dtype=torch.long, device=logits.device)
    step = Step(logits, logits, first_tokens, list(range(rows)), lambda row: [], cast(Any, None))
    return method.assemble(step, () if second is None else (second,)).to(logits.dtype)
