"""What a client asked for: checked, with everything that only the front may say left out."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, NoReturn

from lvlm_guard.engine.method import Method
from lvlm_guard.errors import KnobError, did_you_mean
from lvlm_guard.methods import REGISTRY
from lvlm_guard.methods.vote import Vote
from lvlm_guard.serve.engine import arguments
from lvlm_guard.serve.errors import Refused
from lvlm_guard.serve.front.fields import CLOSED, NEUTRAL, OPENAI, VLLM, WHY_NEUTRAL
from lvlm_guard.serve.front.messages import Conversation, conversation
from lvlm_guard.serve.front.names import Names
from lvlm_guard.serve.vote.ballot import LEAST_BETA, MOST_LAM

KNOBS = {**arguments.KNOBS, Vote.name: ("lam", "beta")}
"""The knobs that a request may set, of each guard that can be served."""

NEEDS_PICTURE = frozenset({"agla", "vcd", "vote"})
"""Guards that have nothing to do for a text alone; APC's cut needs no picture."""

_LONGEST = 64  # of a name that is looked for among the known ones


@dataclass(frozen=True)
class Asked:
    """A request that may be answered.

    Args:
        body: what vLLM gets, but for pictures and guard; its `model` is the plain name.
        name: of the model as the client wrote it.
        method: that has to guard it, with its knobs; None for none.
        chat: messages, pictures and question.
        unguarded: why a guarded name is answered plainly; "" where it is not.
    """

    body: dict[str, Any]
    name: str
    method: Method | None
    chat: Conversation
    unguarded: str = ""

    @property
    def knobs(self) -> dict[str, float]:
        """Return the knobs of the guard, defaults included."""
        return {knob: float(getattr(self.method, knob)) for knob in KNOBS[self.method.name]} if self.method else {}


def asked(
    raw: bytes, names: Names, *, most_pictures: int, drop: tuple[str, ...] = (), special_tokens: bool = False
) -> Asked:
    """Read the body of a chat request.

    Args:
        raw: the body.
        names: of the models here.
        most_pictures: that a request may hold.
        drop: pieces that are no part of a question, such as the model's image token.
        special_tokens: `add_special_tokens` where the body does not say.

    Raises:
        Refused: with what is wrong.
    """
    body = _object(raw)
    plain, guard = names.meant(body.get("model"))
    _check_fields(body, guard)
    method = _method(body.pop("vllm_xargs", None), guard)
    chat = conversation(body.get("messages"), drop)
    if len(chat.pictures) > most_pictures:
        raise Refused(400, f"The request has {len(chat.pictures)} pictures; {most_pictures} at most are taken.")
    name = body.get("model") or plain
    body |= {"model": plain, "messages": chat.messages}
    if special_tokens:
        body.setdefault("add_special_tokens", True)
    if guard in NEEDS_PICTURE and not chat.pictures:
        return Asked(body, name, None, chat, f"the prompt has no picture, so there is nothing for {guard} to guard")
    if guard in ("agla", "vote") and not chat.question:
        raise Refused(
            400,
            f"The last user message has no text, so {guard} does not know what to look for in the picture. Put the "
            f"question into it, or ask the plain model {plain!r}.",
        )
    return Asked(body, name, method, chat)


def _object(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw, parse_constant=_no_constant, parse_float=_finite)
        if b"\\u" in raw:
            json.dumps(body, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body is not JSON ({str(error) or 'nested too deeply':.120}).") from error
    if not isinstance(body, dict):
        raise Refused(400, "The body is no JSON object: send {'model': ..., 'messages': [...]}.")
    return body


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.20} is too large a number")
    return number


def _check_fields(body: dict[str, Any], guard: str | None) -> None:
    for name, value in body.items():
        if value is None or (name in CLOSED and value is False):
            continue
        if name in CLOSED:
            raise Refused(400, f"{name} is not allowed here: {CLOSED[name]}. Leave it out.")
        if name not in OPENAI and name not in VLLM:
            near = did_you_mean(name, OPENAI | VLLM) if len(name) <= _LONGEST else ""
            raise Refused(400, f"{name!r:.80} is no field that is served here. {near}Leave it out.")
        if guard is not None and name in NEUTRAL and value not in NEUTRAL[name]:
            raise Refused(
                400, f"{name} can't be used with {guard}: {WHY_NEUTRAL[name]}. Leave it out, or ask the plain model."
            )
    for name in [name for name in body if body[name] is None or name in CLOSED]:
        del body[name]


def _method(xargs: object, guard: str | None) -> Method | None:
    """Return the guard with the knobs that a request gives; checked by the method itself."""
    given = {} if xargs is None else xargs
    if not isinstance(given, dict):
        raise Refused(400, "vllm_xargs is no object: give the guard's knobs, such as {'agla_alpha': 1.5}.")
    known = {f"{guard}_{knob}": knob for knob in KNOBS[guard]} if guard is not None else {}
    for name, value in given.items():
        if name not in known:
            near = did_you_mean(name, known) if len(name) <= _LONGEST else ""
            takes = (
                f"{guard} takes {', '.join(known)}." if known else "the plain model has no knobs; name a guarded one."
            )
            raise Refused(400, f"vllm_xargs can't hold {name!r:.80}: {near}{takes}")
        if type(value) not in (int, float) or not abs(value) <= MOST_LAM:
            raise Refused(400, f"vllm_xargs.{name} is {value!r:.40}: give a number up to {MOST_LAM:g}.")
    if guard is None:
        return None
    try:
        method: Method = REGISTRY.get(guard)(**{known[name]: float(value) for name, value in given.items()})
    except KnobError as error:
        raise Refused(400, str(error)) from error
    if isinstance(method, Vote) and method.beta < LEAST_BETA:
        raise Refused(
            400, f"vote_beta is {method.beta:g}, which keeps too many tokens to look up: give {LEAST_BETA:g} to 1."
        )
    return method
