"""What a client asked for: checked, with everything that only the front may say left out; needs no torch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, NoReturn

from lvlm_guard.errors import did_you_mean
from lvlm_guard.proof import CHECKS, MATCHED
from lvlm_guard.serve.errors import Refused
from lvlm_guard.serve.front.fields import CLOSED, NEUTRAL, OPENAI, VLLM
from lvlm_guard.serve.front.messages import Conversation, conversation, question_of
from lvlm_guard.serve.front.settings import FrontSettings

NEEDS_PICTURE = frozenset({"agla", "vcd", "vote"})
"""Guards that have nothing to do for a text alone; APC's cut needs no picture."""

_LONGEST = 64  # of a name that is looked for among the known ones


ANSWERS = "lvlm_guard_n"
"""Field of a request to `NAME-best`: how many answers one is chosen from."""


@dataclass(frozen=True)
class Wanted:
    """How a client of `NAME-best` wants what is chosen; the engine is asked in the front's own way.

    Args:
        answers: one is chosen from.
        stream: whether it is streamed, `usage` whether with what it cost.
        logprobs: whether its log-probabilities are told.
        seed: of the first answer; None: whatever the engine takes.
    """

    answers: int = 4
    stream: bool = False
    usage: bool = False
    logprobs: bool = False
    seed: int | None = None

    @classmethod
    def taken(cls, body: dict[str, Any]) -> Wanted:
        """Take it out of a body; raises `Refused`, 400, where a field is of another kind."""
        taken = {name: body.pop(name, None) for name in (ANSWERS, "n", "stream", "stream_options", "logprobs", "seed")}
        answers = cls.answers if taken[ANSWERS] is None else taken[ANSWERS]
        options, seed = taken["stream_options"] or {}, taken["seed"]
        if taken["n"] not in (None, 1):
            raise Refused(400, f"best gives one answer, so n can't be {taken['n']!r:.40}: {ANSWERS} says of how many.")
        if type(answers) is not int or answers < 1 or type(seed) not in (int, type(None)) or type(options) is not dict:
            raise Refused(400, f"{ANSWERS} is a whole number from 1, seed a whole number, stream_options an object.")
        return cls(answers, bool(taken["stream"]), bool(options.get("include_usage")), bool(taken["logprobs"]), seed)


@dataclass(frozen=True, kw_only=True)
class Meant:
    """What a request asks for.

    Args:
        name: of the model as the client wrote it.
        guard: that has to guard it; None for none.
        knobs: what it says of the guard's knobs, unread.
        question: that the matcher is asked about; "" where it is not asked.
        unguarded: why a guarded name is answered plainly; "" where it is not.
    """

    name: str
    guard: str | None
    knobs: object
    question: str = ""
    unguarded: str = ""


@dataclass(frozen=True, kw_only=True)
class Asked(Meant):
    """A request that may be answered.

    Args:
        body: what the engine gets, but for pictures and guard; its `model` is the plain name.
        chat: messages and pictures.
    """

    body: dict[str, Any]
    chat: Conversation


def asked(raw: bytes, rules: FrontSettings) -> Asked:
    """Read the body of a chat request by the rules of what it may hold; raises `Refused` with what is wrong."""
    body = _object(raw)
    plain, guard = rules.every_name.meant(body.get("model"))
    _check_fields(body, guard)
    knobs = body.pop("vllm_xargs", None)
    if guard in CHECKS:
        if knobs is not None:
            raise Refused(400, f"{guard} has no knobs: leave vllm_xargs out.")
        knobs = Wanted.taken(body) if guard == "best" else None
    chat = conversation(body.get("messages"))
    if len(chat.pictures) > rules.most_pictures:
        raise Refused(400, f"The request has {len(chat.pictures)} pictures; {rules.most_pictures} at most are taken.")
    name = body.get("model") or plain
    body |= {"model": plain, "messages": chat.messages}
    if rules.special_tokens:
        body.setdefault("add_special_tokens", True)
    if guard in CHECKS and not chat.pictures:
        raise Refused(400, f"The prompt has no picture that {guard} could check an answer by: ask the model {plain!r}.")
    if guard in NEEDS_PICTURE and not chat.pictures:
        why = f"the prompt has no picture, so there is nothing for {guard} to guard"
        return Asked(body=body, name=name, guard=None, knobs=knobs, chat=chat, unguarded=why)
    question = question_of(chat.last, rules.drop) if guard in MATCHED else ""
    if guard in MATCHED and not question:
        raise Refused(
            400,
            f"The last user message has no text, so {guard} does not know what to look for in the picture. Put the "
            f"question into it, or ask the plain model {plain!r}.",
        )
    return Asked(body=body, name=name, guard=guard, knobs=knobs, chat=chat, question=question)


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
        if name not in OPENAI and name not in VLLM and (name, guard) != (ANSWERS, "best"):
            near = did_you_mean(name, OPENAI | VLLM) if len(name) <= _LONGEST else ""
            raise Refused(400, f"{name!r:.80} is no field that is served here. {near}Leave it out.")
        neutral, why = NEUTRAL.get(name, ((value,), ""))
        if guard not in (None, *CHECKS) and value not in neutral:
            raise Refused(400, f"{name} can't be used with {guard}: {why}. Leave it out, or ask the plain model.")
    for name in [name for name in body if body[name] is None or name in CLOSED]:
        del body[name]
