"""An OpenAI-compatible endpoint: its address, its key, its models, and what went wrong with it in plain words."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from lvlm_guard.errors import MissingExtraError, did_you_mean
from lvlm_guard.evals.errors import DataError, RunError

RETRIES = 5  # after the first try; the client waits .5 s to 8 s, or as long as Retry-After says
TIMEOUT = 120.0  # seconds of one try
KEY = "OPENAI_API_KEY"
NO_KEY = "EMPTY"  # what vLLM's documentation sends where no key is asked for


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible endpoint.

    Args:
        address: as the user gives it: http://HOST:PORT, with or without /v1.
        timeout: seconds of one try.
        retries: tries after the first.
    """

    address: str
    timeout: float = TIMEOUT
    retries: int = RETRIES

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
        raise DataError(
            f"{self.url} has no model {name!r}, {what}. "
            + did_you_mean(name, self.served)
            + f"It has: {', '.join(self.served) or 'none'}."
        )

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
