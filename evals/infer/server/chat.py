"""One chat request to an OpenAI-compatible endpoint and what comes back of it: text, headers, log-probabilities."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from math import exp, isfinite, log
from typing import Any

from lvlm_guard.evals.infer.server.endpoint import short

Talk = list[dict[str, Any]]
"""Chat messages, as `Item.conversation` returns them, or as the wire has them."""

CUT = -9999.0  # what vLLM tells of a token that a guard has cut
MARKS = " \t\r\n▁ĠĊ"
"""What may stand around the word of a token: blanks, and the marks of a word's start that some servers leave."""


@dataclass(frozen=True)
class Token:
    """A token of an answer, and the likeliest tokens in its place, with their log-probabilities in nats."""

    text: str
    logprob: float
    likeliest: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True)
class Reply:
    """What came back of one request.

    Args:
        text: the answer.
        finish: why it ended: "stop", "length", or another word of the server's; None: not told.
        tokens: of the answer; None: not told.
        seconds: of the request, its retries included.
        headers, body: of the response.
        spelled: its tokens; () where none were asked for or told.
        error: why there is no answer; None: there is one.
    """

    text: str = ""
    finish: str | None = None
    tokens: int | None = None
    seconds: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    spelled: tuple[Token, ...] = ()
    error: Exception | None = None


class NoChatError(Exception):
    """A response with status 200 that is no chat completion."""


async def chat(client: Any, model: str, messages: Talk, body: Mapping[str, Any]) -> Reply:
    """Return what came back of a request; an error is a reply, too.

    Args:
        client: an `AsyncOpenAI`, which retries.
        model: its name there.
        messages: of `messages_of`.
        body: further fields; those that the client does not know are sent as they are.
    """
    began = time.perf_counter()
    own = dict(body)
    names = ("max_tokens", "temperature", "top_p", "seed", "logprobs", "top_logprobs")
    known = {name: own.pop(name) for name in names if name in own}
    try:
        raw = await client.chat.completions.with_raw_response.create(
            model=model, messages=messages, extra_body=own or None, **known
        )
        told = raw.parse()
        if isinstance(told, str) or not getattr(told, "choices", None):
            kind = raw.headers.get("content-type", "none")
            raise NoChatError(f"status {raw.http_response.status_code}, content type {kind}: {short(raw.text)}")
        choice = told.choices[0]
        if choice.message is None:
            raise NoChatError(f"a choice without a message: {short(raw.text)}")
        return Reply(
            text=choice.message.content or "",  # null is an empty answer
            finish=choice.finish_reason,
            tokens=told.usage.completion_tokens if told.usage else None,
            seconds=time.perf_counter() - began,
            headers=dict(raw.headers),
            body=told.model_dump(),
            spelled=_spelled(choice.logprobs),
        )
    except Exception as error:  # whatever a server sends: told by whoever asked
        return Reply(seconds=time.perf_counter() - began, error=error)


def messages_of(talk: Talk) -> Talk:
    """Return chat messages as the wire has them: pictures as PNG in the text, without loss."""
    made = []
    for message in talk:
        parts = message["content"]
        if isinstance(parts, str):
            parts = [{"type": "text", "text": parts}]
        made.append({"role": message["role"], "content": [_part(part) for part in parts]})
    return made


def odds(token: Token) -> tuple[float, float, bool] | None:
    """Return the log-odds of yes at a token, the share of yes and no there, and whether one of them was not told.

    Of a word that is not among the likeliest, the smallest log-probability that was told is the most there can be: it
    counts as that. None where nothing was told.
    """
    told = [one for one in token.likeliest if isfinite(one[1]) and one[1] > CUT]
    if not told:
        return None
    least = min(value for _, value in told)
    shares = {
        word: sum(exp(value) for text, value in told if text.strip(MARKS).lower() == word) for word in ("yes", "no")
    }
    yes, no = (log(share) if share > 0 else least for share in shares.values())
    return yes - no, sum(shares.values()), 0 in shares.values()


def cut_at(reply: Reply, text: str, limits: Sequence[int]) -> tuple[int, ...] | None:
    """Return how many characters of a text stand in the reply's first tokens; None where its tokens don't spell it."""
    spelled = "".join(token.text for token in reply.spelled)
    if not reply.spelled or not spelled.startswith(reply.text):
        return None
    before = len(reply.text) - len(reply.text.removeprefix(" "))
    lengths = [len("".join(token.text for token in reply.spelled[:limit])) for limit in limits]
    return tuple(min(max(0, length - before), len(text)) for length in lengths)


def _spelled(told: Any) -> tuple[Token, ...]:
    steps = getattr(told, "content", None) or ()
    found = []
    for step in steps:
        likeliest = [(one.token, one.logprob) for one in step.top_logprobs or ()]
        if likeliest and (step.token, step.logprob) not in likeliest:
            likeliest.append((step.token, step.logprob))
        found.append(Token(step.token, step.logprob, likeliest))
    return tuple(found)


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] != "image":
        return dict(part)
    file = BytesIO()
    part.get("image", part.get("url")).save(file, "PNG")
    return {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()},
    }
