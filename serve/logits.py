"""What processors of logits share: which rows of a step are guarded, for both model runners of vLLM.

Each class serves both, whose interfaces differ:

    V1  __init__(config, device, is_pin_memory), update_state(batch_update), apply(logits)
    V2  __init__(config, states), add_request(slot, params), apply(logits, ctx)

A processor runs after grammars, allowed tokens, minimum lengths and logit bias, and before temperature, top-k and
top-p. A guard that needs no twin takes nothing else from vLLM. `SIGNATURES` are the parameters that are passed or
taken; a test holds the installed release against them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as V1Processor
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as V2Processor

from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.overruled import drawn_of, engine_counts

SIGNATURES = {
    (V1Processor, "__init__"): "vllm_config device is_pin_memory",
    (V1Processor, "update_state"): "batch_update",
    (V1Processor, "apply"): "logits",
    (V1Processor, "is_argmax_invariant"): "",
    (V1Processor, "validate_params"): "sampling_params",
    (V2Processor, "__init__"): "vllm_config req_states",
    (V2Processor, "add_request"): "req_idx sampling_params",
    (V2Processor, "apply"): "logits ctx",
}
"""Class and method, and the parameters that must be there, in this order; others may stand between them."""


class Rows(V1Processor, V2Processor):  # type: ignore[misc]  # vllm is untyped here
    """Knows what each row's request asks for; a subclass says what that is (`read`), and assembles (`apply`)."""

    def __init__(self, vllm_config: Any, device_or_states: Any, is_pin_memory: bool | None = None) -> None:
        self._overruled = engine_counts()
        self._states: Any = device_or_states if is_pin_memory is None else None
        self._rows: dict[int, tuple[Any, list[int]]] = {}  # V1: by row of the batch, with the runner's growing answer
        self._slots: dict[int, Any] = {}  # V2: by slot of the request

    @classmethod
    @abstractmethod
    def read(cls, params: Any) -> Any:
        """Return what a request's `SamplingParams` ask for, None where they ask nothing of this guard.

        Raises:
            GuardError: an argument is unknown or out of range, or can't be had together with a guard.
        """

    @classmethod
    def asked(cls, params: Any) -> Any:
        """Return what `read` does; refuse penalties in a guarded request.

        V1 applies them after a processor of logits and V2 before it, so that they would mean two things.
        """
        found = cls.read(params)
        if found is not None and (
            (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1, 0, 0)
        ):
            raise ServeError(
                "Penalties (repetition, presence, frequency) have no defined order with a guard: leave them out of "
                "guarded requests. A checkpoint's own are left out by --generation-config vllm."
            )
        return found

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raise `GuardError`, a `ValueError` and so a 400 to the client, where a request can't be guarded as asked."""
        cls.asked(sampling_params)

    def is_argmax_invariant(self) -> bool:
        """Return False: changing the best token is the point."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow requests that come, leave and move (V1)."""
        if self._overruled is not None:
            self._overruled.settle()
        process_dict_updates(self._rows, batch_update, self._seat)

    def _seat(self, params: Any, prompt: list[int] | None, answer: list[int]) -> tuple[Any, list[int]] | None:
        asked = self.asked(params)
        return None if asked is None else (asked, answer)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Take a request into a slot, whoever had it before (V2); tells whether it is guarded."""
        asked = self.asked(sampling_params)
        self._slots.pop(req_idx, None)
        if asked is not None:
            self._slots[req_idx] = asked
        return asked is not None

    def guarded(self, logits: Tensor, ctx: Any) -> dict[int, Any]:
        """Return what each guarded row of a step asks for, by row.

        Raises:
            RuntimeError: there are several rows a request. The engine must stop: it would go on unguarded.
        """
        if ctx is None:
            return {row: asked for row, (asked, _) in sorted(self._rows.items())}
        if not self._slots:
            return {}
        slots = ctx.idx_mapping_np.tolist()
        if len(slots) != len(logits):
            raise RuntimeError(f"{len(slots)} requests have {len(logits)} rows of logits; a guard knows one row each.")
        return {row: self._slots[slot] for row, slot in enumerate(slots) if slot in self._slots}

    def count(self, guard: str, ctx: Any, rows: Sequence[int], flags: Tensor | None) -> None:
        """Count rows that were assembled; flags as of `Overruled.add`."""
        if self._overruled is None:
            return
        if ctx is None:
            self._overruled.hold(guard, [self._rows[row][1] for row in rows], flags)
        else:
            self._overruled.add(guard, drawn_of(self._states, ctx, rows), flags)
