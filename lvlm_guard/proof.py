"""What a server says of an answer's guard: `serve.front.answers` writes it, whoever asks reads and checks it here.

X-AGLA: on; alpha=2; beta=0.5; mask=VERSION          X-<METHOD>: "on", "off" or "refused"
X-VOTE: on; lam=1; beta=0.1; scores=VERSION; claims=objects      what was voted on: objects, question, question+objects
"lvlm_guard": {"method": "agla", "knobs": {"alpha": 2.0, "beta": 0.5}, "mask": "VERSION", "notes": [TEXT]}
                                       method null: none ran; notes: what kept the matcher from saying all it could
X-CHECK: verify; scores=VERSION        `NAME-verify`, `NAME-best`: of an answer that no guard touched
"lvlm_guard": {"method": null, "check": "verify", "scores": "VERSION", "verdicts": [...]}

The plain model is `NAME`, the guarded ones are `NAME-agla`, `NAME-vote`, and so on. A guarded name that answers without
saying so, in a header or its body, may have answered plainly: that is an error, never an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lvlm_guard.errors import UnprovedError
from lvlm_guard.methods import REGISTRY

FIELD = "lvlm_guard"  # of an answer's body
MATCHED = {"agla": "mask", "vote": "scores"}
"""Method -> what it takes from a matcher, whose version is told beside the knobs."""

KNOBS = {"agla": ("alpha", "beta"), "vcd": ("alpha", "beta"), "apc": ("beta",), "vote": ("lam", "beta")}
"""Methods that a server guards by, and the knobs of each that a request may set; the others are the operator's."""

CHECKS, CHECK = ("verify", "best"), "x-check"
"""What is done to finished answers of a model that nobody guards, and the header that says so. Checks are no guards."""

Pairs = list[tuple[str, float | str]]
"""Knobs and their values, and the version of what a matcher gave."""


def header_of(method: str) -> str:
    """Return the name of a method's header, in lower case."""
    return f"x-{method}"


def in_headers(headers: Mapping[str, str], methods: Iterable[str]) -> dict[str, tuple[str, Pairs]]:
    """Return what an answer's headers say: method -> "on" or another word, and the knobs behind it."""
    lower = {name.lower(): value for name, value in headers.items()}
    found = {}
    for method in methods:
        if (told := lower.get(header_of(method))) is not None:
            state, *pairs = (part.strip() for part in told.split(";"))
            found[method] = state, [_read(*pair.partition("=")[::2]) for pair in pairs]
    return found


def _read(name: str, value: str) -> tuple[str, float | str]:
    name, value = name.strip(), value.strip()
    try:
        return name, value if name in MATCHED.values() else float(value)
    except ValueError:
        return name, value


@dataclass(frozen=True)
class Proof:
    """What an answer says about its guard.

    Args:
        method: that ran; None: none did.
        knobs: of the method, numbers as numbers, and the version of what a matcher gave; equal over a run.
        claims: what was voted on, "objects", "question" or "question+objects"; "" for other methods.
        notes: on what the matcher could not look at.
    """

    method: str | None
    knobs: Mapping[str, Any]
    claims: str = ""
    notes: tuple[str, ...] = ()


def proof_of(headers: Mapping[str, str], body: Mapping[str, Any]) -> Proof | None:
    """Return what an answer says about its guard, None for nothing; raises `UnprovedError` where it says two things."""
    told, field = in_headers(headers, REGISTRY.names()), body.get(FIELD)
    said = []
    for method, (state, pairs) in told.items():
        if state == "on":
            knobs = {k: v for k, v in pairs if v != ""}
            said.append(Proof(method, knobs, str(knobs.pop("claims", ""))))
    said = (said or [Proof(None, {}) for state, _ in told.values() if state == "off"])[:1]
    if isinstance(field, dict) and "method" in field:
        knobs = field["knobs"] if isinstance(field.get("knobs"), dict) else {}
        notes = tuple(map(str, field.get("notes") or ()))
        said.append(Proof(field["method"], knobs, str(field.get("claims", "")), notes))
    if len({(proof.method, proof.claims) for proof in said}) > 1:
        names = " and ".join(" ".join(filter(None, (proof.method or "none", proof.claims))) for proof in said)
        raise UnprovedError(f"The server's header and body name different guards for one answer: {names}.")
    if not said:
        return None
    return replace(said[-1], knobs={k: v for proof in said for k, v in proof.knobs.items()})


def check(
    name: str, method: str | None, sent: Mapping[str, Any], proof: Proof | None, first: Proof | None = None
) -> Proof | None:
    """Return the proof of an answer that was guarded as asked, or plain where `method` is None.

    Args:
        name: of the model at the server.
        method, sent: the guard that has to have run, and the knobs that were asked for.
        proof, first: what this answer says, and what the first one said: knobs may not change later.

    Raises `UnprovedError` where there is none, or it is of another guard or of other knobs.
    """
    ran = proof.method if proof else None
    if method is None:
        if ran is None:
            return proof
        raise UnprovedError(
            f"{name!r} answers with the guard {ran} on, so it can't be the plain model that guards are compared with. "
            "Give --model the plain name."
        )
    if proof is None or ran is None:
        what = "does not say whether its guard ran" if proof is None else "says that no guard ran"
        raise UnprovedError(
            f"{name!r} gave an answer that {what} (header X-{method.upper()}, field {FIELD!r}), so it may be a "
            "plain one under a guarded name. It was not taken. Is this a guarded server, or does a proxy drop headers?"
        )
    if ran != method:
        raise UnprovedError(f"{name!r} answered with the guard {ran}, not {method}: the answer was not taken.")
    for knob, value in sent.items():
        if not _same(proof.knobs.get(knob), value):
            raise UnprovedError(
                f"{name!r} was asked for {knob}={value} and answered with {knob}={proof.knobs.get(knob, 'nothing')}: "
                "the answer was not taken."
            )
    before = (first or proof).knobs
    both = [(knob, before.get(knob), proof.knobs.get(knob)) for knob in sorted({*before, *proof.knobs})]
    if told := ", ".join(f"{knob}: {one}, now {other}" for knob, one, other in both if not _same(one, other)):
        raise UnprovedError(
            f"{name!r} changed its guard in the middle of the run ({told}): answers of both can't be mixed. Start "
            "over with --start-over once the server stays as it is."
        )
    return proof


def _same(one: Any, other: Any) -> bool:
    """Tell whether two values of a knob are the same, however they were written."""
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        return bool(one == other)
