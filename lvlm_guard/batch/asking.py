"""Rows answered by a server: many requests at once, none of which is taken without proof of its guard."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from lvlm_guard.batch.answering import Answered
from lvlm_guard.batch.plan import How
from lvlm_guard.batch.rows import Row
from lvlm_guard.endpoint import Endpoint, guard_fields, question
from lvlm_guard.errors import GuardError, ServerError
from lvlm_guard.proof import check, proof_of

RETRIES = 8
"""Tries after the first; the client waits .5 s to 8 s, or as long as Retry-After says."""


class Served:
    """A server of guarded models, such as `lvlm-guard serve`, by its address; `how.model` is its plain name.

    Args:
        how: rows are answered; `how.server` may be the address of a balancer before many.
        at_once: requests at one time.

    Raises:
        MissingExtraError: openai is not installed.
    """

    def __init__(self, how: How, at_once: int = 32) -> None:
        self._how, self._endpoint = how, Endpoint(how.server, timeout=600, retries=RETRIES, extra="batch")
        self._client = self._endpoint.client(synchronous=True)
        self._pool = ThreadPoolExecutor(at_once)

    def __call__(self, rows: Sequence[Row]) -> list[Answered]:
        """Return what became of rows, in order.

        Raises:
            UnprovedError: an answer does not say that it was guarded as asked.
            ServerError: the server is not there, or fails.
        """
        return list(self._pool.map(self._answer, rows))

    def _answer(self, row: Row) -> Answered:
        how = self._how
        if row.error:
            return Answered(error=row.error)
        try:  # made here, so that what is wrong with a picture costs no request
            messages = question(row.images(), row.prompt)
        except GuardError as error:
            return Answered(error=str(error))
        import openai

        name = f"{how.model}-{how.method}"
        try:
            raw = self._client.chat.completions.with_raw_response.create(
                model=name,
                messages=messages,
                max_tokens=how.max_new_tokens,
                temperature=0,
                extra_body=guard_fields(how.method, how.knobs),
            )
            answer = raw.parse()
        except openai.OpenAIError as error:
            if getattr(error, "status_code", None) in (400, 413, 422):  # of this row alone
                return Answered(error=f"{type(error).__name__}: {error}")
            raise ServerError(f"{how.server} gave no answer: {self._endpoint.reason(error)}") from error
        proof = check(name, how.method, how.knobs, proof_of(raw.headers, answer.model_extra or {}))
        assert proof is not None  # `check` would have raised
        tokens = answer.usage.completion_tokens if answer.usage else 0
        text = (answer.choices[0].message.content or "").strip()
        return Answered(text, None, proof.method, dict(proof.knobs), tokens, {"notes": list(proof.notes)})
