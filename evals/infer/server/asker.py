"""Who answers where a server does: one queue over all questions, each answer checked for its guard.

Requests of all tasks and decoders wait in one line, `at_once` of them in flight, so that none waits for a block to end.
A failure is told apart from an answer: what no further question can mend ends the run, the rest is a row that failed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from lvlm_guard import methods
from lvlm_guard.evals.decoders.decoder import Decoder
from lvlm_guard.evals.errors import RunError
from lvlm_guard.evals.infer.generate import until
from lvlm_guard.evals.infer.ranks import KEPT
from lvlm_guard.evals.infer.server.endpoint import Endpoint, Reply, Talk, chat, cut_at, messages_of, odds, retried
from lvlm_guard.evals.infer.server.proof import Proof, check_guarded, check_plain, proof_of
from lvlm_guard.evals.infer.store import Job, Took, Who
from lvlm_guard.evals.spec.answers import LIMITS
from lvlm_guard.evals.spec.items import CAPTIONS, YES_NO, EvalTask, Item, Said

IN_A_ROW = 3  # requests that fail one after another before the server is taken to be down
LIKELIEST = 20  # most likely tokens that are asked for at the first of a yes/no answer
CANARY = "is there a dog in the image ?"
_UNSEEN: dict[str, Any] = dict.fromkeys(
    ("forwards", "local_forwards", "local_tokens", "masks"), float("nan")
)  # from here


@dataclass(frozen=True)
class Line:
    """How a decoder is asked: as which model, with which fields in every request, and which knobs among these."""

    decoder: Decoder
    model: str
    body: Mapping[str, Any]
    sent: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class ServerAsker:
    """Asks an endpoint.

    Args:
        at_once: requests in flight.
        lines: how each decoder is asked, by its name.
        proofs: guarded decoder -> what its first answer proved.
        tells: whether the server tells log-probabilities.
    """

    endpoint: Endpoint
    at_once: int = 1
    lines: dict[str, Line] = field(default_factory=dict)
    proofs: dict[str, Proof] = field(default_factory=dict)
    tells: bool = True
    _failed: int = 0
    _recent: dict[tuple[str, ...], Talk] = field(default_factory=dict)

    def ask_all(self, jobs: Iterable[Job], took: Took) -> None:
        """Ask all of some jobs, each of one item, and hand on each answer as it comes.

        An answer that the server refuses to give is a `Said` with `failed`, which is never scored. Calls of the
        model, masks and memory can't be seen from here and are NaN or None; seconds are those of the request, divided
        by the requests in flight.

        Raises:
            RunError: the server is down, refuses the key, has lost the model, or an answer does not prove its guard.
        """
        try:
            asyncio.run(self._queue(((job, who) for job in jobs for who in job.todo), took))
        except BaseExceptionGroup as group:  # the first that failed; the others were cancelled
            raise group.exceptions[0] from None

    def probe(self, name: str) -> Reply:
        """Ask a decoder about a small picture, and note what its answer proves.

        Raises:
            RunError: it can't be asked, or does not prove its guard.
        """
        import openai

        line = self.lines[name]
        body = self._body(line, "pope", 4, 0)
        reply = asyncio.run(self._once(line, body))
        if "logprobs" in body:
            self.tells = bool(reply.spelled)
            if isinstance(reply.error, openai.BadRequestError | openai.UnprocessableEntityError):  # some have none
                reply = asyncio.run(self._once(line, self._body(line, "pope", 4, 0)))
        if reply.error is not None:
            reason = self.endpoint.reason(reply.error)
            raise RunError(f"{line.model!r} can't be asked: {reason} Nothing else was asked.")
        self._check(line, True, reply)
        return reply

    async def _once(self, line: Line, body: Mapping[str, Any]) -> Reply:
        async with self.endpoint.client() as client:
            return await chat(client, line.model, messages_of(_canary()), body)

    async def _queue(self, units: Iterator[tuple[Job, Who]], took: Took) -> None:
        async with self.endpoint.client() as client:

            async def work() -> None:
                for job, (name, seed) in units:
                    (item,) = job.items
                    line = self.lines[name]
                    body = self._body(line, job.task.kind, job.task.max_new_tokens, document_seed(seed, item.key))
                    talk = await self._messages(job.task, line.decoder, item)
                    reply = await chat(client, line.model, talk, body)
                    took(job, (name, seed), [self._said(line, job.task, _pictured(talk), reply)])

            async with asyncio.TaskGroup() as group:
                for _ in range(self.at_once):
                    group.create_task(work())

    async def _messages(self, task: EvalTask, decoder: Decoder, item: Item) -> Talk:
        """Return an item's messages; decoders ask about it one after another, so its picture is encoded once."""
        key = (task.name, task.split, item.key, decoder.prompt_suffix)
        made = self._recent.get(key)
        if made is None:
            made = await asyncio.to_thread(lambda: messages_of(decoder.worded(item).conversation()))
            self._recent[key] = made
            while len(self._recent) > 4 * self.at_once:
                self._recent.pop(next(iter(self._recent)))
        return made

    def _body(self, line: Line, kind: str, max_new_tokens: int, seed: int) -> dict[str, Any]:
        body = {**line.body, "max_tokens": max_new_tokens}
        if line.decoder.sampled:
            body["seed"] = seed
        if self.tells and kind in CAPTIONS:
            body["logprobs"] = True
        if self.tells and kind in YES_NO and body["temperature"] in (0.0, 1.0):  # at others odds are others
            body |= {"logprobs": True, "top_logprobs": LIKELIEST}
        return body

    def _said(self, line: Line, task: EvalTask, pictured: bool, reply: Reply) -> Said:
        if reply.error is not None:
            return Said("", **_UNSEEN, failed=self._failure(reply.error))
        self._failed = 0
        proof = self._check(line, pictured, reply)
        if reply.finish not in (None, "stop", "length"):
            return Said("", **_UNSEEN, failed=f"the server ended the answer with {reply.finish!r}")
        tokens = len(reply.text.split()) if reply.tokens is None else reply.tokens
        cut = tokens >= task.max_new_tokens if reply.finish is None else reply.finish == "length"
        # vLLM spells an answer as what follows on the prompt, so that a first word keeps the space before it
        whole = reply.text.removeprefix(" ")
        text = until(whole, task.until)
        told = odds(reply.spelled[0]) if reply.spelled and task.kind in YES_NO else None
        score, mass, censored = told or (None, None, False)
        return Said(
            text,
            tokens,
            not cut or text != whole,
            reply.seconds / self.at_once,
            **_UNSEEN,
            score=score,
            mass=mass,
            censored=censored,
            cut_at=cut_at(reply, text, LIMITS) if task.kind in CAPTIONS else None,
            proof=json.dumps({"method": proof.method, "knobs": dict(proof.knobs)}, sort_keys=True) if proof else None,
        )

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

    def _check(self, line: Line, pictured: bool, reply: Reply) -> Proof | None:
        """See that the guard that was asked for ran, and no other; return what the answer says of it."""
        name, method = line.decoder.name, line.decoder.method
        proof = proof_of(reply.headers, reply.body, methods.REGISTRY.names())
        if method is None:
            check_plain(line.model, proof)
        elif pictured or proof is None or proof.method is not None:  # no picture: nothing to guard, and it says "off"
            proof = check_guarded(line.model, method, line.sent, proof, self.proofs.get(name))
            self.proofs.setdefault(name, proof)
        return proof


def document_seed(seed: int, key: str) -> int:
    """Return the `seed` of a request: of the run's seed and the document; 31 bits, which every server takes."""
    return int.from_bytes(blake2b(f"{seed} {key}".encode(), digest_size=4).digest(), "big") >> 1


def _pictured(talk: Talk) -> bool:
    return any(part["type"] == "image_url" for message in talk for part in message["content"])


def _canary() -> Talk:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (96, 96), (200, 220, 240))
    ImageDraw.Draw(picture).ellipse((20, 30, 70, 80), fill=(180, 60, 40))
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": CANARY}]}]
