"""Which guard ran: what a guarded server says of each answer, and whether that is what was asked for.

The plain model is `NAME`, the guarded ones are `NAME-agla`, `NAME-vote`, and so on. An answer says which guard made it
in a header, in a field of its body, or in both:

    X-AGLA: on; alpha=2; beta=0.5; mask=VERSION      X-<METHOD>: "on" or "off", then the knobs
    {"choices": ..., "lvlm_guard": {"method": "agla", "knobs": {"alpha": 2, "beta": 0.5}}}      null for none

A guarded name that answers without saying so may have answered plainly: that is an error, never an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lvlm_guard.evals.errors import RunError

FIELD = "lvlm_guard"


@dataclass(frozen=True)
class Proof:
    """What an answer says about its guard: which ran (None: none did), with which knobs, numbers as numbers."""

    method: str | None
    knobs: Mapping[str, Any]


def proof_of(headers: Mapping[str, str], body: Mapping[str, Any], methods: list[str]) -> Proof | None:
    """Return what an answer says about its guard, one of `methods` in a header; None: nothing.

    Raises:
        RunError: it says two things.
    """
    said = [proof for proof in (_in_header(headers, methods), _in_body(body)) if proof is not None]
    if len({proof.method for proof in said}) > 1:
        told = " and ".join(proof.method or "none" for proof in said)
        raise RunError(f"The server's header and body name different guards for one answer: {told}.")
    return Proof(said[0].method, {k: v for proof in said for k, v in proof.knobs.items()}) if said else None


def check_plain(name: str, proof: Proof | None) -> None:
    """Raise `RunError` where a plain name answers with a guard."""
    if proof is not None and proof.method is not None:
        raise RunError(
            f"{name!r} answers with the guard {proof.method} on, so it can't be the plain model that guards are "
            "compared with. Give --model the plain name."
        )


def check_guarded(name: str, method: str, sent: Mapping[str, Any], proof: Proof | None, first: Proof | None) -> Proof:
    """Return the proof that an answer was guarded as asked.

    Args:
        name: of the model at the server.
        method, sent: the guard that has to have run, and the knobs that were asked for.
        proof, first: what this answer says, and what the first one said: knobs may not change later.

    Raises:
        RunError: there is none, or it is of another guard or of other knobs.
    """
    if proof is None or proof.method is None:
        what = "does not say whether its guard ran" if proof is None else "says that no guard ran"
        raise RunError(
            f"{name!r} gave an answer that {what} (header X-{method.upper()}, field {FIELD!r}), so it may be a "
            "plain one under a guarded name. It was not taken. Is this a guarded server, or does a proxy drop headers?"
        )
    if proof.method != method:
        raise RunError(f"{name!r} answered with the guard {proof.method}, not {method}: the answer was not taken.")
    for knob, value in sent.items():
        if not same(proof.knobs.get(knob), value):
            raise RunError(
                f"{name!r} was asked for {knob}={value} and answered with {knob}={proof.knobs.get(knob, 'nothing')}: "
                "the answer was not taken."
            )
    if first is not None:
        both = [(k, first.knobs.get(k), proof.knobs.get(k)) for k in sorted({*first.knobs, *proof.knobs})]
        told = ", ".join(f"{k}: {before}, now {value}" for k, before, value in both if not same(before, value))
        if told:
            raise RunError(
                f"{name!r} changed its guard in the middle of the run ({told}): answers of both can't be mixed. Start "
                "over with --start-over once the server stays as it is."
            )
    return proof


def same(one: Any, other: Any) -> bool:
    """Return whether two values of a knob are the same, however they were written."""
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        return bool(one == other)


def _in_header(headers: Mapping[str, str], methods: list[str]) -> Proof | None:
    found: Proof | None = None
    lower = {name.lower(): value for name, value in headers.items()}
    for method in methods:
        state, *pairs = [part.strip() for part in lower.get(f"x-{method}", "").split(";")]
        if state == "on":
            return Proof(method, dict(_pair(pair) for pair in pairs if "=" in pair))
        if state == "off":
            found = Proof(None, {})
    return found


def _pair(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        return name.strip(), value.strip()


def _in_body(body: Mapping[str, Any]) -> Proof | None:
    told = body.get(FIELD)
    if not isinstance(told, dict) or "method" not in told:
        return None
    knobs = told.get("knobs")
    return Proof(told["method"], knobs if isinstance(knobs, dict) else {})
