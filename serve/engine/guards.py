"""The logits processors: AGLA, VCD and APC over a twin, APC alone over any model, by the transformers engine's algebra.

Each class serves both model runners of vLLM, whose interfaces differ:

    V1  __init__(config, device, is_pin_memory), update_state(batch_update), apply(logits)
    V2  __init__(config, states), add_request(slot, params), apply(logits, ctx)

It runs after grammar and allowed tokens and before temperature and top-p. A forbidden token arrives with
-inf, the cut is taken over what is still allowed, and -inf plus a weight stays -inf.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from lvlm_guard.engine.method import Method, Step
from lvlm_guard.serve.allowed import guard_allowed
from lvlm_guard.serve.engine.arguments import method_of
from lvlm_guard.serve.engine.handover import Handover, open_handover
from lvlm_guard.serve.engine.plugin import TWINS
from lvlm_guard.serve.engine.refuse import WHY
from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.logits import V1Processor, V2Processor, process_dict_updates
from lvlm_guard.serve.overruled import drawn_of, engine_counts, preferred_others
from lvlm_guard.serve.penalties import check_no_penalties


class NoBranch:
    """Stands for the `Handover` of an engine without a second branch; APC looks at the first alone."""

    def take(self, rows: int) -> None:
        """Return nothing, for any number of rows."""


def method_for(params: Any) -> Method | None:
    """Return the method that a request's `SamplingParams` ask for, None for a plain request.

    Raises:
        GuardError: an argument is unknown or out of range, or can't be had together with a guard.
    """
    method = method_of(params.extra_args)
    if method is None:
        return None
    if params.prompt_logprobs is not None:
        raise ServeError("prompt_logprobs would be the plain model's, not the guard's: leave it out.")
    check_no_penalties(params)
    return method


class Guards(V1Processor, V2Processor):  # type: ignore[misc]  # vllm is untyped here
    """Assembles the rows of guarded requests and leaves the others as they are."""

    def __init__(self, vllm_config: Any, device_or_states: Any, is_pin_memory: bool | None = None) -> None:
        self._handover = self._opened(vllm_config)
        self._overruled = engine_counts()
        self._states = device_or_states if is_pin_memory is None else None
        self._rows: dict[int, tuple[Method, list[int]]] = {}  # V1: by row of the batch, with the growing answer
        self._slots: dict[int, Method] = {}  # V2: by slot of the request

    def _opened(self, vllm_config: Any) -> Handover | NoBranch:
        if not set(TWINS) & set(vllm_config.model_config.architectures):
            raise ServeError(
                "This engine has no second branch, so that its guards would do nothing. Set hf_overrides to "
                f'{{"architectures": [one of {", ".join(TWINS)}]}}.'
            )
        return open_handover(vllm_config)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raise `GuardError`, a 400 to the client, where a request's arguments are amiss."""
        method_for(sampling_params)

    def is_argmax_invariant(self) -> bool:
        """Return False: changing the best token is the point."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Learn which requests came, left and moved (V1)."""
        if self._overruled is not None:
            self._overruled.settle()
        process_dict_updates(self._rows, batch_update, _seat)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Learn which request a slot holds from now on (V2); tells whether it is guarded."""
        method = method_for(sampling_params)
        self._slots.pop(req_idx, None)
        if method is not None:
            self._slots[req_idx] = method
        return method is not None

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Return the logits with those of guarded rows assembled, in place.

        Args:
            logits: global logits, [rows, V] float32.
            ctx: which slot a row belongs to (V2).
        """
        if ctx is None:
            asked = [self._rows[row][0] if row in self._rows else None for row in range(len(logits))]
        else:
            asked = [self._slots.get(slot) for slot in ctx.idx_mapping_np.tolist()]
        second = self._handover.take(len(logits))
        if len(asked) != len(logits):
            raise RuntimeError(f"{len(asked)} requests have {len(logits)} rows of logits; a guard knows one row each.")
        groups: dict[Method, list[int]] = {}
        for row, method in enumerate(asked):
            if method is not None:
                groups.setdefault(method, []).append(row)
        for method, rows in groups.items():
            guard_allowed(logits, rows, partial(self._assemble, method, logits, second, ctx))
        return logits

    def _assemble(self, method: Method, logits: Tensor, second: Tensor | None, ctx: Any, rows: list[int]) -> None:
        index = slice(None) if len(rows) == len(logits) else torch.tensor(rows, device=logits.device)
        plain = logits[index]
        guarded = assembled(method, plain, None if second is None else second[index])
        if self._overruled is not None:
            flags = preferred_others(guarded, plain)
            if ctx is None:
                self._overruled.hold(method.name, [self._rows[row][1] for row in rows], flags)
            else:
                self._overruled.add(method.name, drawn_of(self._states, ctx, rows), flags)
        logits[index] = guarded


class Cut(Guards):
    """APC over any model as it is: the method needs the model's own logits and nothing else."""

    def _opened(self, vllm_config: Any) -> NoBranch:
        if vllm_config.speculative_config is not None:
            raise ServeError(WHY["speculative"])
        if vllm_config.model_config.logprobs_mode != "processed_logprobs":
            raise ServeError(WHY["logprobs"])
        return NoBranch()

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raise `GuardError`, a 400 to the client, where a request's arguments are amiss."""
        method = method_for(sampling_params)
        if method is not None and method.branches():
            raise ServeError(f"{method.name} needs a second branch, and this engine has none: serve it by its twin.")


def _seat(params: Any, prompt: list[int] | None, answer: list[int]) -> tuple[Method, list[int]] | None:
    method = method_for(params)
    return None if method is None else (method, answer)


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
