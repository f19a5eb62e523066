"""One chat request to an OpenAI-compatible endpoint, and what its answer tells of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, isfinite, log
from typing import Any

from lvlm_guard.endpoint import short
from lvlm_guard.images import data_url

Talk = list[dict[str, Any]]  # chat messages, as `Item.conversation` returns them, or as the wire has them
CUT = -9999.0  # what vLLM tells of a token that a guard has cut
MARKS = " \t\r\n▁ĠĊ"
"""What may stand around the word of a token: blanks, and the marks of a word's start that some servers leave."""


class NoChatError(Exception):
    """A response with status 200 that is no chat completion."""


async def chat(client: Any, model: str, messages: Talk, body: Mapping[str, Any]) -> tuple[Any, Mapping[str, str]]:
    """Return the `ChatCompletion` that an `AsyncOpenAI` got, and its headers; raises whatever that raises. `messages`
    are of `messages_of`; `body` holds further fields, sent as they are."""
    create = client.chat.completions.with_raw_response.create
    raw = await create(model=model, messages=messages, extra_body=dict(body))
    told = raw.parse()
    if isinstance(told, str) or not getattr(told, "choices", None):
        kind = raw.headers.get("content-type", "none")
        raise NoChatError(f"status {raw.http_response.status_code}, content type {kind}: {short(raw.text)}")
    if told.choices[0].message is None:
        raise NoChatError(f"a choice without a message: {short(raw.text)}")
    return told, raw.headers


def messages_of(talk: Talk) -> Talk:
    """Return chat messages as the wire has them: pictures as PNG in the text, without loss."""

    def wired(part: Mapping[str, Any]) -> dict[str, Any]:
        if part["type"] != "image":
            return dict(part)
        url = data_url(part.get("image", part.get("url")), compress_level=6)
        return {"type": "image_url", "image_url": {"url": url}}

    made = []
    for message in talk:
        parts = message["content"]
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else list(map(wired, parts))
        made.append({"role": message["role"], "content": parts})
    return made


def spelled(choice: Any) -> Sequence[Any]:
    """Return the tokens of a choice, each a `ChatCompletionTokenLogprob`; () where none were asked for or told."""
    return getattr(choice.logprobs, "content", None) or ()


def odds(token: Any) -> tuple[float, float, bool] | None:
    """Return the log-odds of yes at a token, the share of yes and no there, and whether one of them was not told. Of a
    word that is not among the likeliest, the smallest log-probability that was told is the most there can be: it counts
    as that. None where nothing was told."""
    told = [(one.token, one.logprob) for one in token.top_logprobs or ()]
    if told and (token.token, token.logprob) not in told:
        told.append((token.token, token.logprob))
    told = [(text.strip(MARKS).lower(), value) for text, value in told if isfinite(value) and value > CUT]
    if not told:
        return None
    least = min(value for _, value in told)
    shares = [sum(exp(value) for text, value in told if text == word) for word in ("yes", "no")]
    yes, no = (log(share) if share > 0 else least for share in shares)
    return yes - no, sum(shares), 0 in shares


def cut_at(tokens: Sequence[Any], whole: str, text: str, limits: Sequence[int]) -> tuple[int, ...] | None:
    """Return how many characters of a text stand in the first tokens of the whole; None where they don't spell it."""
    pieces = [token.token for token in tokens]
    if not pieces or not "".join(pieces).startswith(whole):
        return None
    before = len(whole) - len(whole.removeprefix(" "))
    return tuple(min(max(0, len("".join(pieces[:limit])) - before), len(text)) for limit in limits)
