"""Penalties and guards: the one rule that all processors of logits share."""

from __future__ import annotations

from typing import Any

from lvlm_guard.serve.errors import ServeError


def check_no_penalties(params: Any) -> None:
    """Refuse penalties in a guarded request.

    vLLM's V1 runner applies them after a processor of logits and the V2 runner before it, so that they would mean
    two things.

    Args:
        params: the request's `SamplingParams`.

    Raises:
        ServeError: a penalty is set.
    """
    if (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1, 0, 0):
        raise ServeError(
            "Penalties (repetition, presence, frequency) have no defined order with a guard: leave them out of guarded "
            "requests. A checkpoint's own are left out by --generation-config vllm."
        )
