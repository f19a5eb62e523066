"""An OpenAI-compatible endpoint: its address, key and models, and what went wrong in plain words."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lvlm_guard.errors import KnobError, MissingExtraError, ServerError, did_you_mean
from lvlm_guard.images import data_url

if TYPE_CHECKING:
    from PIL.Image import Image

KEY = "OPENAI_API_KEY"
NO_KEY = "EMPTY"  # what vLLM's documentation sends where no key is asked for


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint.

    Args:
        address: as the user gives it: http://HOST:PORT, with or without /v1.
        timeout: seconds of one try.
        retries: after the first try; the client waits .5 s to 8 s, or as long as Retry-After says.
        extra: of this package, which has the client.
    """

    address: str
    timeout: float = 120.0
    retries: int = 5
    extra: str = "eval"

    @property
    def url(self) -> str:
        """The base URL; raises `KnobError` where the address is none."""
        parts = urlsplit(self.address)
        try:
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number
            known = False
        if not known or parts.query or parts.fragment:
            raise KnobError(f"{self.address!r} is no address of a server: write it as http://HOST:8000/v1.")
        if parts.username or parts.password:
            raise KnobError(f"An address ends up in reports, so it may hold no password: put the key into {KEY}.")
        return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/chat/completions') or '/v1'}"

    def client(self, synchronous: bool = False) -> Any:
        """Return the official client, its key is OPENAI_API_KEY; raises `MissingExtraError` where openai is missing."""
        try:
            from openai import AsyncOpenAI, OpenAI
        except ImportError as error:
            raise MissingExtraError(f"Asking a server needs openai: pip install 'lvlm-guard[{self.extra}]'.") from error
        kind: Any = OpenAI if synchronous else AsyncOpenAI
        key = os.environ.get(KEY) or NO_KEY
        return kind(base_url=self.url, api_key=key, timeout=self.timeout, max_retries=self.retries)

    @cached_property
    def served(self) -> dict[str, str]:
        """Its models' names and owners; raises `ServerError` where it can't be reached or is no such endpoint."""
        try:
            with self.client(synchronous=True) as client:
                listed = client.models.with_raw_response.list().parse()
            return {str(model.id): str(model.owned_by) for model in listed.data}
        except (MissingExtraError, KnobError):
            raise
        except (AttributeError, TypeError, ValueError):
            told = "lists no models, so this is no OpenAI-compatible endpoint"
            raise ServerError(f"{self.url}/models {told}. Give an address such as http://HOST:8000/v1.") from None
        except Exception as error:
            raise ServerError(f"{self.reason(error)} Nothing was asked.") from error

    def require(self, name: str, what: str) -> str:
        """Return a model's name; raises `KnobError`, with the nearest, where there is no such model."""
        if name in self.served:
            return name
        near, there = did_you_mean(name, self.served), ", ".join(self.served) or "none"
        raise KnobError(f"{self.url} has no model {name!r}, {what}. {near}It has: {there}.")

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


def question(images: Sequence[Image], prompt: str) -> list[dict[str, Any]]:
    """Return the messages that ask a prompt about pictures; raises `ImageError` where one can't be written."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]


def guard_fields(method: str | None, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a request that set a guard's knobs at the server, as vLLM takes them."""
    return {"vllm_xargs": {f"{method}_{knob}": value for knob, value in knobs.items()}} if knobs else {}
