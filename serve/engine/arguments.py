"""What a request carries to the engine: which method, its knobs, and what its second view is.

    vllm_xargs            {"guard": "agla", "guard_alpha": 2.0, "guard_beta": 0.5}
    mm_processor_kwargs   {"guard_mask": text} for AGLA (a list of texts for several pictures),
                          {"guard_noise": {"step": 500, "seed": 0}} for VCD

The front is their only author. Nothing here needs vllm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lvlm_guard.engine.method import Method
from lvlm_guard.methods.agla import AGLA
from lvlm_guard.methods.apc import APC
from lvlm_guard.methods.vcd import VCD
from lvlm_guard.methods.vote import Vote
from lvlm_guard.proof import KNOBS
from lvlm_guard.serve import knobs
from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.knobs import GUARD, named

MASK, NOISE = "guard_mask", "guard_noise"
TWIN: dict[str, type[Method]] = {"agla": AGLA, "vcd": VCD, "apc": APC}
"""The methods of the twin engine."""


def method_of(extra: Mapping[str, Any] | None) -> Method | None:
    """Return the twin engine's method that a request asks for, None for a plain one or another engine's.

    Args:
        extra: `SamplingParams.extra_args`.

    Raises:
        GuardError: the method is unknown, or an argument is no knob of it or out of range.
    """
    asked = named(extra)
    return None if asked is None or asked[0] == Vote.name else knobs.method_of(*asked)


def request_arguments(method: Method) -> dict[str, str | float]:
    """Return what `vllm_xargs` says of a method: the inverse of `method_of`.

    Raises:
        ServeError: the method is none of the twin engine's.
    """
    if method.name not in TWIN:
        raise ServeError(f"The twin engine has no method {method.name!r}; it has {', '.join(TWIN)}.")
    return {GUARD: method.name} | {f"{GUARD}_{knob}": getattr(method, knob) for knob in KNOBS[method.name]}


def view_arguments(method: Method, masks: Sequence[str] = ()) -> dict[str, Any]:
    """Return what `mm_processor_kwargs` says of the second views of a request's pictures.

    Args:
        method: the method.
        masks: for AGLA the mask of each picture as text (`lvlm_guard.serve.wire.pack_mask`), in the
            order of the prompt.
    """
    if isinstance(method, AGLA):
        if not masks:
            raise ServeError("AGLA needs a mask for each picture: ask the matcher service for them.")
        return {MASK: masks[0] if len(masks) == 1 else list(masks)}
    if isinstance(method, VCD):
        return {NOISE: {"step": method.noise_step, "seed": method.seed}}
    return {}
