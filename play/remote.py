"""A running `lvlm-guard serve`, by its address."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from lvlm_guard.errors import GuardError, KnobError, MissingExtraError
from lvlm_guard.images import data_url
from lvlm_guard.matching import load_matcher
from lvlm_guard.play import snippet
from lvlm_guard.play.backend import GREEDY, Asked, Offered, offered_methods
from lvlm_guard.play.judging import Judge, objects_of
from lvlm_guard.play.local import STEP
from lvlm_guard.pretrained import EMBEDDED
from lvlm_guard.proof import CHECKS, FIELD, KNOBS, check, proof_of
from lvlm_guard.report.answer import Said

KEY = "OPENAI_API_KEY"
SECONDS = 120.0  # of one answer
_CHECKED = tuple(f"-{name}" for name in CHECKS)


class ServerError(GuardError):
    """A server can't be reached, or gave no answer."""


class Remote:
    """A server that answers plainly under NAME and guarded under NAME-agla, NAME-vote, ...

    Every guarded answer has to prove that its guard ran (`lvlm_guard.proof`). The key is `OPENAI_API_KEY`.

    Args:
        address: http://HOST:PORT, with or without /v1.
        matcher: who draws maps and verdicts here, as `load_matcher` takes it; None: nobody, but for a server of the
            embedded model the matcher in this package.
        objects: the path of a list of what is verified.

    Raises:
        ServerError: it can't be reached, or is no such server.
        MissingExtraError: openai is not installed.
    """

    def __init__(self, address: str, *, matcher: str | None = None, objects: str | None = None) -> None:
        self.url = _base(address)
        try:
            import openai
        except ImportError as error:
            raise MissingExtraError("Asking a server needs openai: pip install 'lvlm-guard[play]'.") from error
        self._errors = openai.OpenAIError
        self._client = openai.OpenAI(
            base_url=self.url, api_key=os.environ.get(KEY) or "EMPTY", timeout=SECONDS, max_retries=1
        )
        try:
            names = [str(model.id) for model in self._client.models.list()]
        except Exception as error:  # anything may answer at an address
            raise ServerError(
                f"{self.url}/models lists no models ({_short(error)}). Is the server running, the address right, and "
                f"its key in {KEY}?"
            ) from error
        known = offered_methods()
        self.name = next((name for name in names if any(f"{name}-{method}" in names for method in known)), "")
        if not self.name:
            checked = [name for name in names if name.rpartition("-")[0] in names and name.endswith(_CHECKED)]
            if checked:
                raise ServerError(
                    f"{self.url} checks answers ({', '.join(checked)}), and guards none: there are no methods to "
                    "compare on this page. Its verdicts are in `lvlm_guard.verdicts` of what OpenAI's client gets from "
                    "these names; a server that guards is started by lvlm-guard serve, without --upstream."
                )
            raise ServerError(
                f"{self.url} serves no guarded model (it has: {', '.join(names) or 'none'}), so there is nothing to "
                "compare. Start one: lvlm-guard serve."
            )
        self.embedded = self.name == EMBEDDED
        self.methods = {
            name: Offered(one.does, {k: v for k, v in one.knobs.items() if k in KNOBS.get(name, ())})
            for name, one in known.items()
            if name == GREEDY or f"{self.name}-{name}" in names
        }
        spec = matcher or (EMBEDDED if self.embedded else None)
        self.judge = Judge(load_matcher(spec), objects_of(objects, self.embedded)) if spec else None

    @property
    def title(self) -> str:
        """The model's name and where it is."""
        return f"{self.name} at {self.url}"

    def answers(self, asked: Asked) -> Iterator[Said]:
        """Return one answer as it grows; it has no trace, for a server tells none."""
        method = None if asked.method == GREEDY else asked.method
        name = self.name if method is None else f"{self.name}-{method}"
        began, shown, text, proved = time.perf_counter(), 0.0, "", False
        try:
            raw = self._client.chat.completions.with_raw_response.create(
                model=name,
                messages=_messages(asked),
                max_tokens=asked.most_tokens,
                temperature=0,
                stream=True,
                extra_body={"vllm_xargs": {f"{method}_{k}": v for k, v in asked.knobs.items()}} if asked.knobs else {},
            )
            with raw.parse() as stream:
                for chunk in stream:
                    if not proved:
                        told = proof_of(raw.headers, {FIELD: (chunk.model_extra or {}).get(FIELD)})
                        check(name, method, asked.knobs, told)
                        proved = True
                    text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
                    now = time.perf_counter()
                    if text.strip() and now - shown >= STEP:
                        shown = now
                        yield Said(asked.method, text.strip(), now - began)
        except self._errors as error:
            raise ServerError(f"{name} gave no answer: {_short(error)}") from error
        if not proved:
            raise ServerError(f"{name} ended its answer before it began. Ask again, and look at the server's log.")
        yield Said(asked.method, text.strip(), time.perf_counter() - began)

    def decoded(self, tokens: Sequence[int]) -> str:
        """Raise: a server tells no tokens."""
        raise KnobError("A server's answer has no trace, so there are no tokens to decode.")

    def matched_text(self, asked: Asked) -> str:
        """Return the prompt: what the server matches is the last message's text."""
        return asked.prompt

    def remarks(self, prompt: str) -> list[str]:
        """Return what a server can't show."""
        told = [
            "A server proves which guard ran, but tells no overruled tokens: ask a model in this process for those."
        ]
        if self.judge is None:
            told.append("No matcher is at hand for maps and verdicts: start with --matcher NAME.")
        return told

    def script(self, picture: str, questions: list[Asked]) -> str:
        """Return a script for OpenAI's client."""
        return snippet.remote(self.url, self.name, picture, questions)


def _base(address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise KnobError(f"{address!r} is no address of a server: write it as http://HOST:8000.")
    if parts.username or parts.password:
        raise KnobError(f"The address is shown on the page, so it may hold no password: put the key into {KEY}.")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


def _messages(asked: Asked) -> Any:
    parts: list[Mapping[str, Any]] = [
        {"type": "image_url", "image_url": {"url": data_url(asked.picture)}},
        {"type": "text", "text": asked.prompt},
    ]
    return [{"role": "user", "content": parts}]


def _short(error: Exception) -> str:
    flat = " ".join(str(error).split()) or type(error).__name__
    return flat if len(flat) <= 200 else flat[:197] + "..."
