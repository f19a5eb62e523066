"""The second branch's logits of one step, on their way from the model to the processor of logits."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor


class Handover:
    """A place for one step's logits: put in by the model, taken out by the processor."""

    def __init__(self) -> None:
        self._logits: Tensor | None = None

    def put(self, logits: Tensor) -> None:
        """Leave the second branch's logits, [rows, V]; what was not taken is gone."""
        self._logits = logits

    def take(self, rows: int) -> Tensor:
        """Return this step's logits, [rows, V], once.

        Raises:
            RuntimeError: there are none, or for another number of rows. The engine must stop: it would
                go on unguarded, or with the logits of another request.
        """
        logits, self._logits = self._logits, None
        found = 0 if logits is None else len(logits)
        if logits is None or found != rows:
            raise RuntimeError(
                f"The step has {rows} rows of logits, but the second branch left {found}. This release of vLLM calls "
                "the model and the logits processors in another order than lvlm-guard knows: install the pinned one."
            )
        return logits


_OPEN: WeakValueDictionary[int, Handover] = WeakValueDictionary()


def open_handover(vllm_config: Any) -> Handover:
    """Return the handover of an engine; whoever asks first, model or processor, makes it.

    One runner builds the processor before the model, the other after it. Both get configurations that
    share one object alone, the layers' `static_forward_context`; two engines in one process have two.
    """
    key = id(vllm_config.compilation_config.static_forward_context)
    handover = _OPEN.get(key)
    if handover is None:
        handover = _OPEN[key] = Handover()
    return handover
