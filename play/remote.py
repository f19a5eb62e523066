"""A running `lvlm-guard serve`, by its address."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from lvlm_guard.endpoint import Endpoint, guard_fields, question
from lvlm_guard.errors import KnobError, ServerError
from lvlm_guard.matching import load_matcher
from lvlm_guard.play import snippet
from lvlm_guard.play.backend import GREEDY, Asked, Offered, offered_methods
from lvlm_guard.play.judging import Judge, objects_of
from lvlm_guard.play.local import STEP
from lvlm_guard.pretrained import EMBEDDED
from lvlm_guard.proof import CHECKS, KNOBS, check, proof_of
from lvlm_guard.report.answer import Said

SECONDS = 120.0  # of one answer
_CHECKED = tuple(f"-{name}" for name in CHECKS)


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
        self._endpoint = Endpoint(address, SECONDS, retries=1, extra="play")
        self.url, names = self._endpoint.url, list(self._endpoint.served)
        self._client = self._endpoint.client(synchronous=True)
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
        from openai import OpenAIError

        began, shown, text, proved = time.perf_counter(), 0.0, "", False
        try:
            raw = self._client.chat.completions.with_raw_response.create(
                model=name,
                messages=question([asked.picture], asked.prompt),
                max_tokens=asked.most_tokens,
                temperature=0,
                stream=True,
                extra_body=guard_fields(method, asked.knobs),
            )
            with raw.parse() as stream:
                for chunk in stream:
                    if not proved:
                        check(name, method, asked.knobs, proof_of(raw.headers, chunk.model_extra or {}))
                        proved = True
                    text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
                    now = time.perf_counter()
                    if text.strip() and now - shown >= STEP:
                        shown = now
                        yield Said(asked.method, text.strip(), now - began)
        except OpenAIError as error:
            raise ServerError(f"{name} gave no answer: {self._endpoint.reason(error)}") from error
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
