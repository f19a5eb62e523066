"""Who answers where a server does: one queue over all questions, each answer checked for its guard.

Requests of all tasks and decoders wait in one line, `at_once` of them in flight, so that none waits for a block to end.
A failure is told apart from an answer: what no further question can mend ends the run, the rest is a row that failed.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from PIL import Image, ImageDraw

from lvlm_guard.endpoint import Endpoint, retried
from lvlm_guard.errors import UnprovedError
from lvlm_guard.evals.decoders.decoder import Decoder
from lvlm_guard.evals.errors import RunError
from lvlm_guard.evals.infer.generate import until
from lvlm_guard.evals.infer.ranks import KEPT
from lvlm_guard.evals.infer.server.endpoint import Talk, chat, cut_at, messages_of, odds, spelled
from lvlm_guard.evals.infer.store import Job, Took, Who
from lvlm_guard.evals.spec.answers import LIMITS
from lvlm_guard.evals.spec.items import CAPTIONS, YES_NO, EvalTask, Item, Said
from lvlm_guard.proof import Proof, check, proof_of

IN_A_ROW = 3  # requests that fail one after another before the server is taken to be down
LIKELIEST = 20  # most likely tokens that are asked for at the first of a yes/no answer
_PICTURE = Image.new("RGB", (96, 96), (200, 220, 240))
ImageDraw.Draw(_PICTURE).ellipse((20, 30, 70, 80), fill=(180, 60, 40))
CANARY = EvalTask("canary", "pope", [Item("0", "0", "is there a dog in the image ?", (_PICTURE,))], 4)
_UNSEEN: dict[str, Any] = dict.fromkeys(("forwards", "local_forwards", "local_tokens", "masks"), float("nan"))


@dataclass(frozen=True)
class Line:
    """How a decoder is asked: as which model, with which fields in every request, and which knobs among these."""

    decoder: Decoder
    model: str
    body: Mapping[str, Any]
    sent: Mapping[str, Any]


@dataclass
class ServerAsker:
    endpoint: Endpoint
    at_once: int = 1  # requests in flight
    lines: dict[str, Line] = field(default_factory=dict)  # how each decoder is asked, by its name
    proofs: dict[str, Proof] = field(default_factory=dict)  # what the first answer of each guarded one proved
    tells: bool = True  # whether the server tells log-probabilities
    _failed: int = 0

    def ask_all(self, jobs: Iterable[Job], took: Took) -> None:
        """Ask all of some jobs, each of one item, and hand on each answer as it comes.

        An answer that the server refuses to give is a `Said` with `failed`. Calls of the model, masks and memory can't
        be seen from here: NaN or None. Seconds are those of the request, divided by the requests in flight. Raises
        `RunError` where the server is down, refuses the key, has lost the model, or does not prove a guard.
        """
        units = ((job, who, talks) for job in jobs for talks in [dict[str, Talk]()] for who in job.todo)
        try:
            asyncio.run(self._queue(units, took))
        except BaseExceptionGroup as group:  # the first that failed; the others were cancelled
            raise group.exceptions[0] from None

    def probe(self, name: str) -> Any:
        """Ask a decoder about a small picture, note what its answer proves, and return the chat completion. Raises
        `RunError` where it can't be asked, or does not prove its guard."""
        import openai

        line = self.lines[name]
        body = self._body(line, CANARY, 0)

        async def once() -> tuple[Any, Mapping[str, str]]:
            async with self.endpoint.client() as client:
                return await chat(client, line.model, messages_of(CANARY.items[0].conversation()), body)

        try:
            told, headers = asyncio.run(once())
        except Exception as error:
            if "logprobs" in body and isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
                self.tells = False  # some servers have none
                return self.probe(name)
            reason = self.endpoint.reason(error)
            raise RunError(f"{line.model!r} can't be asked: {reason} Nothing else was asked.") from error
        self.tells = bool(spelled(told.choices[0])) if "logprobs" in body else self.tells
        self._check(line, True, told, headers)
        return told

    async def _queue(self, units: Iterator[tuple[Job, Who, dict[str, Talk]]], took: Took) -> None:
        async with self.endpoint.client() as client, asyncio.TaskGroup() as group:

            async def work() -> None:
                for job, (name, seed), talks in units:
                    (item,), decoder = job.items, self.lines[name].decoder
                    # decoders ask about an item one after another: its picture is encoded once
                    if decoder.prompt_suffix not in talks:
                        talks[decoder.prompt_suffix] = await asyncio.to_thread(_talk, decoder, item)
                    asked = job.task, talks[decoder.prompt_suffix], document_seed(seed, item.key)
                    took(job, (name, seed), [await self._said(client, self.lines[name], *asked)])

            for _ in range(self.at_once):
                group.create_task(work())

    async def _said(self, client: Any, line: Line, task: EvalTask, talk: Talk, seed: int) -> Said:
        began = time.perf_counter()
        try:
            told, headers = await chat(client, line.model, talk, self._body(line, task, seed))
        except Exception as error:  # whatever a server sends
            return Said("", **_UNSEEN, failed=self._failure(error))
        seconds, self._failed = time.perf_counter() - began, 0
        pictured = any(part["type"] == "image_url" for message in talk for part in message["content"])
        proof = self._check(line, pictured, told, headers)
        choice = told.choices[0]
        if choice.finish_reason not in (None, "stop", "length"):
            return Said("", **_UNSEEN, failed=f"the server ended the answer with {choice.finish_reason!r}")
        spoken, spelt = choice.message.content or "", spelled(choice)  # null is an empty answer
        tokens = told.usage.completion_tokens if told.usage else len(spoken.split())
        at_limit = tokens >= task.max_new_tokens if choice.finish_reason is None else choice.finish_reason == "length"
        # vLLM spells an answer as what follows on the prompt, so that a first word keeps the space before it
        whole = spoken.removeprefix(" ")
        text = until(whole, task.until)
        score, mass, censored = (odds(spelt[0]) if spelt and task.kind in YES_NO else None) or (None, None, False)
        more: dict[str, Any] = {"score": score, "mass": mass, "censored": censored}
        if task.kind in CAPTIONS:
            more["cut_at"] = cut_at(spelt, spoken, text, LIMITS)
        if proof:
            more["proof"] = json.dumps({"method": proof.method, "knobs": dict(proof.knobs)}, sort_keys=True)
        return Said(text, tokens, not at_limit or text != whole, seconds / self.at_once, **_UNSEEN | more)

    def _body(self, line: Line, task: EvalTask, seed: int) -> dict[str, Any]:
        body = {**line.body, "max_tokens": task.max_new_tokens}
        if line.decoder.sampled:
            body["seed"] = seed
        if self.tells and task.kind in CAPTIONS:
            body["logprobs"] = True
        if self.tells and task.kind in YES_NO and body["temperature"] in (0.0, 1.0):  # at others odds are others
            body |= {"logprobs": True, "top_logprobs": LIKELIEST}
        return body

    def _failure(self, error: Exception) -> str:
        """Return why there is no answer; raise where the next request would fail as well."""
        import openai

        reason = self.endpoint.reason(error)
        status = error.status_code if isinstance(error, openai.APIStatusError) else None
        slow = isinstance(error, openai.APITimeoutError)
        if status == 401 or (isinstance(error, openai.APIConnectionError) and not slow):
            raise RunError(f"{reason} {KEPT}") from error
        # the small pictures were answered: 403 and 404 may be of this request alone, as where a filter stands before
        if status is None or status in (403, 404) or retried(status):
            self._failed += 1
            if self._failed >= IN_A_ROW:
                raise RunError(f"{reason} So it went with {self._failed} requests in a row. {KEPT}") from error
        return reason

    def _check(self, line: Line, pictured: bool, told: Any, headers: Mapping[str, str]) -> Proof | None:
        name, method = line.decoder.name, line.decoder.method
        try:
            proof = proof_of(headers, told.model_extra or {})
            if method and not pictured and proof is not None and proof.method is None:
                return proof  # there was nothing to guard
            proof = check(line.model, method, line.sent, proof, self.proofs.get(name))
        except UnprovedError as error:
            raise RunError(str(error)) from error
        if method and proof:
            self.proofs.setdefault(name, proof)
        return proof


def document_seed(seed: int, key: str) -> int:
    """Return the `seed` of a request: of the run's seed and the document; 31 bits, which every server takes."""
    return int.from_bytes(blake2b(f"{seed} {key}".encode(), digest_size=4).digest(), "big") >> 1


def _talk(decoder: Decoder, item: Item) -> Talk:
    return messages_of(decoder.worded(item).conversation())
