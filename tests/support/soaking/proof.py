"""Which guard an answer says it had, read strictly: what is missing, odd or contradictory is no proof."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from lvlm_guard.errors import UnprovedError
from lvlm_guard.methods import REGISTRY
from lvlm_guard.proof import KNOBS, MATCHED, in_headers


@dataclass(frozen=True)
class Proof:
    """What an answer says of its guard.

    Args:
        guard: that ran; None: the answer says that none did.
        knobs: of the guard, all of them.
        version: of the mask or the scores, "" where the guard needs none.
    """

    guard: str | None
    knobs: Mapping[str, float]
    version: str = ""


def expected(guard: str | None, knobs: Mapping[str, float]) -> Proof:
    """Return what an answer has to say, its version left open, when a guard is asked for with some knobs."""
    if guard is None:
        return Proof(None, {})
    method = REGISTRY.get(guard)(**knobs)
    return Proof(guard, {knob: float(getattr(method, knob)) for knob in KNOBS[guard]})


def check(name: str, wanted: Proof, headers: Mapping[str, str], fields: list[Any]) -> Proof:
    """Return the proof of an answer that was made as it had to be.

    Args:
        name: of the model that was asked.
        wanted: of `expected`.
        headers: of the answer, names in lower case.
        fields: what stood under `lvlm_guard` in the body, or in each chunk of a stream that had it.

    Raises:
        UnprovedError: anything else.
    """
    said = in_header(name, headers)
    if said is None or not fields:
        where = "header" if said is None else "body"
        raise UnprovedError(f"{name!r} answered without a word on its guard in the {where}: it may be unguarded.")
    for field in fields:
        if in_body(name, field) != said:
            raise UnprovedError(
                f"{name!r}: header and body of an answer speak of different guards: {said}, {field!r:.200}."
            )
    if (said.guard, said.knobs) != (wanted.guard, wanted.knobs):
        raise UnprovedError(f"{name!r} answered with {_shown(said)}, not {_shown(wanted)}.")
    if bool(said.version) != (said.guard in MATCHED):
        raise UnprovedError(f"{name!r}: the version of what the matcher gave is {said.version!r}.")
    return said


def in_header(name: str, headers: Mapping[str, str]) -> Proof | None:
    """Return what the headers say, None for nothing; raises `UnprovedError` where they can't be read."""
    found = in_headers(headers, KNOBS)
    if not found:
        return None
    if {state for state, _ in found.values()} == {"off"}:
        return Proof(None, {})
    if len(found) > 1:
        raise UnprovedError(f"{name!r}: an answer's headers speak of several guards: {found}.")
    ((guard, (state, pairs)),) = found.items()
    told = dict(pairs)
    pairs = [pair for pair in pairs if pair[0] != "claims"]
    told.pop("claims", None)
    version = unquote(str(told.pop(MATCHED.get(guard, ""), "")))
    knobs = {knob: value for knob, value in told.items() if isinstance(value, float)}
    if state != "on" or len(told) != len(pairs) - bool(version) or tuple(knobs) != KNOBS[guard]:
        raise UnprovedError(
            f"{name!r}: X-{guard.upper()} is {state!r} with {pairs!r:.200}, which is no proof of a guard."
        )
    return Proof(guard, knobs, version)


def in_body(name: str, field: Any) -> Proof:
    """Return what a body says under `lvlm_guard`; raises `UnprovedError` where it can't be read."""
    try:
        guard, knobs = field["method"], dict(field["knobs"])
        version = field[MATCHED[guard]] if guard in MATCHED else ""
        sound = isinstance(version, str) and all(type(value) in (int, float) for value in knobs.values())
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound or not (guard is None or guard in KNOBS):
        raise UnprovedError(f"{name!r}: the body says {field!r:.200} of the guard, which is no proof.")
    return Proof(guard, {knob: float(value) for knob, value in knobs.items()}, version)


def _shown(proof: Proof) -> str:
    if proof.guard is None:
        return "no guard"
    return " ".join([proof.guard, *(f"{knob}={value:g}" for knob, value in proof.knobs.items())])
