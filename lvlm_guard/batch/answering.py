"""Rows answered by a guarded model in this process, or by a server: with the proof that an answer was guarded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from lvlm_guard.batch.how import How
from lvlm_guard.batch.rows import Row
from lvlm_guard.endpoint import Endpoint, guard_fields, question
from lvlm_guard.errors import GuardError, ServerError, UnprovedError
from lvlm_guard.proof import check, proof_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from lvlm_guard.engine.trace import GuardTrace


DIGITS = 4
"""Of a trace's numbers; those behind depend on where in memory a processor's operands lie."""

RETRIES = 8
"""Tries of a server after the first; the client waits .5 s to 8 s, or as long as Retry-After says."""


@dataclass(frozen=True)
class Answered:
    """What became of a row.

    Args:
        text: of the answer; None where there is an error.
        error: why there is no answer.
        method: that guarded it, and with which knobs, the matcher's version among them.
        knobs: of the method.
        tokens: of the answer that were assembled: all of it, its end included.
        trace: what the guard did, in numbers.
    """

    text: str | None = None
    error: str | None = None
    method: str | None = None
    knobs: dict[str, Any] = field(default_factory=dict)
    tokens: int = 0
    trace: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str | None:
        """Of method and knobs; equal for answers that were guarded alike."""
        if self.method is None:
            return None
        told = json.dumps([self.method, self.knobs], sort_keys=True, default=str)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


Answerer = Callable[[Sequence[Row]], list[Answered]]
"""Returns what became of rows, in order; raises `UnprovedError` where an answer was not guarded as asked."""


def answerer_of(how: How, device: str, at_once: int) -> Answerer:
    """Return a server of `at_once` requests where `how` names one, else a model on a device."""
    return Served(how, at_once) if how.server else Local(how, device)


class Local:
    """A guarded model in this process; raises `GuardError` where it can't be loaded or guarded."""

    def __init__(self, how: How, device: str = "auto") -> None:
        from lvlm_guard.api import guard, resolve
        from lvlm_guard.matching import load_matcher
        from lvlm_guard.pretrained import load_model

        self._how = how
        loaded = load_model(how.model, device=device, dtype=how.dtype, adapter=how.adapter, revision=how.revision)
        method = resolve(how.method, how.knobs)
        spec = getattr(method.assembling, "matcher", "attention")
        self._matcher = None if spec == "attention" else load_matcher(spec, model=loaded[0])
        self._model, self._processor = guard(*loaded, method, execution=how.execution)

    def __call__(self, rows: Sequence[Row]) -> list[Answered]:
        if self._matcher is not None:  # which rows are answered before must not show, not even in a last bit
            self._matcher.forget()
        found: list[Answered] = [Answered(error=row.error) for row in rows]
        waiting: list[tuple[int, Row, list[Image]]] = []
        for place, row in enumerate(rows):
            if not row.error:
                try:
                    waiting.append((place, row, row.images()))
                except GuardError as error:
                    found[place] = Answered(error=str(error))
            if len(waiting) == self._how.batch or (waiting and place == len(rows) - 1):
                for (where, _, _), one in zip(waiting, self._answers(waiting), strict=True):
                    found[where] = one
                waiting = []
        return found

    def _answers(self, asked: Sequence[tuple[int, Row, list[Image]]]) -> list[Answered]:
        """Answer together; where that fails, each alone, so that the fault stays with its own row."""
        import torch

        try:
            return self._together([row.prompt for _, row, _ in asked], [images for _, _, images in asked])
        except UnprovedError:
            raise
        except (GuardError, torch.OutOfMemoryError) as error:
            if len(asked) == 1:
                return [Answered(error=f"{type(error).__name__}: {error}")]
        with suppress(RuntimeError, AssertionError):
            torch.cuda.empty_cache()
        return [one for each in asked for one in self._answers([each])]

    def _together(self, prompts: list[str], pictures: list[list[Image]]) -> list[Answered]:
        from lvlm_guard.pretrained import ask, spoken

        inputs = ask(self._processor, pictures, prompts).to(self._model.device, dtype=self._model.dtype)
        settings: dict[str, Any] = {"max_new_tokens": self._how.max_new_tokens, "do_sample": False}
        settings |= dict.fromkeys(("temperature", "top_p", "top_k"))
        output = self._model.generate(**inputs, **settings, return_dict_in_generate=True)
        trace: GuardTrace = output.guard
        if not trace.guarded or len(trace.steps) != len(prompts):
            raise UnprovedError(f"generate() did not guard all of {len(prompts)} answers: {trace.notes}")
        starts = [0, *accumulate(map(len, pictures))]
        start = inputs["input_ids"].shape[1]
        answered = []
        for number, (row, steps) in enumerate(zip(output.sequences[:, start:].tolist(), trace.steps, strict=True)):
            text = spoken(self._processor, row[: len(steps)]).strip()
            about = told(trace, number, range(starts[number], starts[number + 1]))
            answered.append(Answered(text, None, trace.method, trace.knobs, len(steps), about))
        return answered


def told(trace: GuardTrace, number: int, pictures: range) -> dict[str, Any]:
    """Return a trace in a few numbers.

    Args:
        trace: of a batch.
        number: of the answer in it.
        pictures: the indices of its pictures.
    """
    steps = trace.steps[number]
    apart = [step.divergence for step in steps if step.divergence is not None]
    return {
        "execution": trace.execution,
        "decided": sum(step.decided for step in steps),
        "overruled": sum(step.overruled is not None for step in steps),
        "divergence": round(sum(apart) / len(apart), DIGITS) if apart else None,
        "matches": [
            {name: round(match[name], DIGITS) for name in ("score", "kept")}
            for match in trace.matches
            if match.get("image") in pictures
        ],
        "notes": trace.notes,
    }


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
        """Also raises `ServerError` where the server is not there, or fails."""
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
