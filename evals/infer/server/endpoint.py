"""An OpenAI-compatible endpoint: its address, key and models, one chat request, and what went wrong in plain words."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from math import exp, isfinite, log
from typing import Any
from urllib.parse import urlsplit

from lvlm_guard.errors import MissingExtraError, did_you_mean
from lvlm_guard.evals.errors import DataError, RunError

KEY = "OPENAI_API_KEY"
NO_KEY = "EMPTY"  # what vLLM's documentation sends where no key is asked for
Talk = list[dict[str, Any]]
"""Chat messages, as `Item.conversation` returns them, or as the wire has them."""

CUT = -9999.0  # what vLLM tells of a token that a guard has cut
MARKS = " \t\r\n▁ĠĊ"
"""What may stand around the word of a token: blanks, and the marks of a word's start that some servers leave."""


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint, by its address as the user gives it: http://HOST:PORT, with or without /v1."""

    address: str
    timeout: float = 120.0  # seconds of one try
    retries: int = 5  # after the first try; the client waits .5 s to 8 s, or as long as Retry-After says

    @property
    def url(self) -> str:
        """The base URL; raises `DataError` where the address is none."""
        parts = urlsplit(self.address)
        try:
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number
            known = False
        if not known or parts.query or parts.fragment:
            raise DataError(f"{self.address!r} is no address of a server: write it as http://HOST:8000/v1.")
        if parts.username or parts.password:
            raise DataError(f"An address ends up in reports, so it may hold no password: put the key into {KEY}.")
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"

    def client(self, synchronous: bool = False) -> Any:
        """Return the official client, asynchronous unless said otherwise; its key is OPENAI_API_KEY."""
        try:
            from openai import AsyncOpenAI, OpenAI
        except ImportError as error:
            raise MissingExtraError("Asking a server needs openai: pip install 'lvlm-guard[eval]'.") from error
        return (OpenAI if synchronous else AsyncOpenAI)(
            base_url=self.url, api_key=os.environ.get(KEY) or NO_KEY, timeout=self.timeout, max_retries=self.retries
        )

    @cached_property
    def served(self) -> dict[str, str]:
        """The names of its models, each with its owner.

        Raises:
            RunError: it can't be reached, wants another key, or is no such endpoint.
        """
        try:
            with self.client(synchronous=True) as client:
                listed = client.models.with_raw_response.list().parse()
            return {str(model.id): str(model.owned_by) for model in listed.data}
        except (AttributeError, TypeError, ValueError):
            raise RunError(
                f"{self.url}/models lists no models, so this is no OpenAI-compatible endpoint (a web page, or another "
                "service). Give the address under which /v1/models is, such as http://HOST:8000/v1."
            ) from None
        except Exception as error:
            raise RunError(f"{self.reason(error)} Nothing was asked.") from error

    def require(self, name: str, what: str) -> str:
        """Return a model's name; raises `DataError`, with the nearest, where there is no such model."""
        if name in self.served:
            return name
        near, there = did_you_mean(name, self.served), ", ".join(self.served) or "none"
        raise DataError(f"{self.url} has no model {name!r}, {what}. {near}It has: {there}.")

    def reason(self, error: Exception) -> str:
        """Return what went wrong, in a sentence or two."""
        import openai

        tried = f"tried {self.retries + 1} times" if self.retries else "tried once"
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            which = "refuses the key in " + KEY if os.environ.get(KEY) else f"wants a key, and {KEY} is not set"
            return f"{self.url} {which} ({error.status_code}): set {KEY} to a key of this server."
        if isinstance(error, openai.APITimeoutError):
            return f"{self.url} did not answer within {self.timeout:g} s ({tried})."
        if isinstance(error, openai.APIConnectionError):
            cause = error.__cause__ or error
            return f"{self.url} can't be reached ({tried}): {cause}. Is the server running, and the address right?"
        if isinstance(error, openai.APIStatusError):
            told = f", {tried}" if retried(error.status_code) else ""
            return f"{self.url} answered {error.status_code}{told}: {short(error.message)}"
        return f"{self.url} gave no chat completion: {short(str(error))}"


def retried(status: int) -> bool:
    """Return whether a status is tried again: the server's trouble, not the request's."""
    return status in (408, 409, 429) or status >= 500


def short(text: str) -> str:
    """Return a text in one line of at most 200 characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= 200 else flat[:197] + "..."


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
        finish: why the answer ended: "stop", "length", or another word of the server's; None: not told.
        tokens: of the answer; None: not told.
        seconds: of the request, its retries included.
        spelled: the answer's tokens; () where none were asked for or told.
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
    """Return what came back of a request to an `AsyncOpenAI`, which retries; an error is a reply, too.

    Args:
        messages: of `messages_of`.
        body: further fields, sent as they are.
    """
    began = time.perf_counter()
    create = client.chat.completions.with_raw_response.create
    try:
        raw = await create(model=model, messages=messages, extra_body=dict(body))
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
    found = []
    for step in getattr(told, "content", None) or ():
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
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}
