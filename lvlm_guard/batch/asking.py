"""Rows answered by a server: many requests at once, none of which is taken without proof of its guard."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lvlm_guard.batch.answering import Answered
from lvlm_guard.batch.plan import How
from lvlm_guard.batch.rows import Row
from lvlm_guard.errors import GuardError, KnobError, MissingExtraError
from lvlm_guard.images import data_url
from lvlm_guard.proof import FIELD, check, proof_of

KEY = "OPENAI_API_KEY"
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
        try:
            import openai
        except ImportError as error:
            raise MissingExtraError("Asking a server needs openai: pip install 'lvlm-guard[batch]'.") from error
        self._how, self._errors = how, openai
        address = how.server.rstrip("/")
        url = address if address.endswith("/v1") else address + "/v1"
        key = os.environ.get(KEY) or "EMPTY"
        self._client = openai.OpenAI(base_url=url, api_key=key, max_retries=RETRIES, timeout=600)
        self._pool = ThreadPoolExecutor(at_once)

    def __call__(self, rows: Sequence[Row]) -> list[Answered]:
        """Return what became of rows, in order.

        Raises:
            UnprovedError: an answer does not say that it was guarded as asked.
            GuardError: the server is not there, or fails.
        """
        return list(self._pool.map(self._answer, rows))

    def _answer(self, row: Row) -> Answered:
        how = self._how
        if row.error:
            return Answered(error=row.error)
        try:
            # made here, so that what is wrong with a picture costs no request
            urls = [data_url(image) for image in row.images()]
        except GuardError as error:
            return Answered(error=str(error))
        parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        name = f"{how.model}-{how.method}"
        knobs = {"vllm_xargs": {f"{how.method}_{knob}": value for knob, value in how.knobs.items()}}
        try:
            raw = self._client.chat.completions.with_raw_response.create(
                model=name,
                messages=[{"role": "user", "content": [*parts, {"type": "text", "text": row.prompt}]}],  # type: ignore[misc,list-item,unused-ignore]
                max_tokens=how.max_new_tokens,
                temperature=0,
                extra_body=knobs if how.knobs else {},
            )
            answer = raw.parse()
        except (self._errors.BadRequestError, self._errors.UnprocessableEntityError) as error:
            return Answered(error=f"{type(error).__name__}: {error.message}")
        except self._errors.OpenAIError as error:
            if getattr(error, "status_code", None) == 413:
                return Answered(error=f"{type(error).__name__}: {error}")
            raise KnobError(f"{how.server} gave no answer ({type(error).__name__}: {error}).") from error
        told = proof_of(raw.headers, {FIELD: (answer.model_extra or {}).get(FIELD)})
        proof = check(name, how.method, how.knobs, told)
        assert proof is not None  # `check` would have raised
        tokens = answer.usage.completion_tokens if answer.usage else 0
        text = (answer.choices[0].message.content or "").strip()
        return Answered(text, None, proof.method, dict(proof.knobs), tokens, {"notes": list(proof.notes)})
