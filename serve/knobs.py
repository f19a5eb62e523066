"""A guard by its name, with the knobs that a request gives: read here alone, by the front and by both processors.

client     "vllm_xargs": {"agla_alpha": 1.5}                   to NAME-agla, whose front reads `agla_*`
engine     "vllm_xargs": {"guard": "agla", "guard_alpha": 1.5, ...}                         reads `guard_*`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lvlm_guard.engine.method import Method
from lvlm_guard.errors import KnobError, UnknownNameError, did_you_mean
from lvlm_guard.methods import REGISTRY
from lvlm_guard.methods.vote import Vote
from lvlm_guard.proof import KNOBS

GUARD = "guard"

MOST = 1e3
"""Of any knob; a larger weight could push a vote beyond what rejected tokens are pushed down by."""

LEAST_BETA = 1e-3
"""Of `vote`: lower cuts keep so many tokens that looking each up would hold up every other request of the step."""

_LONGEST = 64  # of a name that is looked for among the known ones


def named(extra: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]] | None:
    """Return the guard that `SamplingParams.extra_args` ask for, and what they say of it; None for a plain request.

    Raises:
        GuardError: the guard is unknown, or something is said of none.
    """
    given = {name: value for name, value in (extra or {}).items() if name.startswith(GUARD)}
    if not given:
        return None
    if (guard := given.pop(GUARD, None)) is None:
        raise KnobError(f"{min(given)} comes without guard: name the method, such as guard='vote'.")
    if guard not in tuple(KNOBS):  # whatever a client wrote, hashable or not
        near = did_you_mean(str(guard), KNOBS)
        raise UnknownNameError(f"No guard {guard!r} is served. {near}Known: {', '.join(KNOBS)}.")
    return guard, given


def method_of(guard: str, given: Mapping[str, Any], prefix: str = GUARD) -> Method:
    """Return a guard with its knobs, checked by the method itself.

    Args:
        guard: of `lvlm_guard.proof.KNOBS`.
        given: by names with a prefix, `guard_alpha`.
        prefix: theirs.

    Raises:
        KnobError: something else than a knob in its range is given.
    """
    known = {f"{prefix}_{knob}": knob for knob in KNOBS[guard]}
    for name, value in given.items():
        if name not in known:
            near = did_you_mean(name, known) if len(name) <= _LONGEST else ""
            raise KnobError(f"{name!r:.80} is no knob of {guard}. {near}It has: {', '.join(known)}.")
        if type(value) not in (int, float) or not abs(value) <= MOST:
            raise KnobError(f"{name} is {value!r:.40}: give a number up to {MOST:g}.")
    method: Method = REGISTRY.get(guard)(**{known[name]: float(value) for name, value in given.items()})
    if isinstance(method, Vote) and method.beta < LEAST_BETA:
        raise KnobError(
            f"{prefix}_beta is {method.beta:g}, which keeps too many tokens to look up: give {LEAST_BETA:g} to 1."
        )
    return method
