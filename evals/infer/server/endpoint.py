"""An OpenAI-compatible endpoint: its address, key and models, one chat request, and what went wrong in plain words."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, isfinite, log
from typing import Any
from urllib.parse import urlsplit

from lvlm_guard.errors import MissingExtraError, did_you_mean
from lvlm_guard.evals.errors import DataError, RunError
from lvlm_guard.images import data_url

KEY = "OPENAI_API_KEY"
NO_KEY = "EMPTY"  # what vLLM's documentation sends where no key is asked for
Talk = list[dict[str, Any]]  # chat messages, as `Item.conversation` returns them, or as the wire has them
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
        return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/chat/completions') or '/v1'}"

    def client(self, synchronous: bool = False) -> Any:
        """Return the official client, asynchronous unless said otherwise; its key is OPENAI_API_KEY."""
        try:
            from openai import AsyncOpenAI, OpenAI
        except ImportError as error:
            raise MissingExtraError("Asking a server needs openai: pip install 'lvlm-guard[eval]'.") from error
        made: dict[str, Any] = {"timeout": self.timeout, "max_retries": self.retries}
        kind = OpenAI if synchronous else AsyncOpenAI
        return kind(base_url=self.url, api_key=os.environ.get(KEY) or NO_KEY, **made)

    @cached_property
    def served(self) -> dict[str, str]:
        """Its models' names and owners; raises `RunError` where it can't be reached or is no such endpoint."""
        try:
            with self.client(synchronous=True) as client:
                listed = client.models.with_raw_response.list().parse()
            return {str(model.id): str(model.owned_by) for model in listed.data}
        except (AttributeError, TypeError, ValueError):
            told = "lists no models, so this is no OpenAI-compatible endpoint"
            raise RunError(f"{self.url}/models {told}. Give an address such as http://HOST:8000/v1.") from None
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
