"""Who answers where a server does: each answer checked for its guard, each failure told apart from an answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from lvlm_guard import methods
from lvlm_guard.evals.decoders.decoder import Decoder
from lvlm_guard.evals.errors import RunError
from lvlm_guard.evals.infer.generate import until
from lvlm_guard.evals.infer.server.endpoint import Endpoint, retried
from lvlm_guard.evals.infer.server.proof import Proof, check_guarded, check_plain, proof_of
from lvlm_guard.evals.infer.server.wire import Line, Reply, Talk
from lvlm_guard.evals.infer.store import Who
from lvlm_guard.evals.spec.items import EvalTask, Item, Said

IN_A_ROW = 3  # requests that fail one after another before the server is taken to be down
CANARY = "is there a dog in the image ?"
KEPT = "The answers so far are kept in the run's folder: give the same command again, and it goes on from there."


@dataclass
class ServerAsker:
    """Asks an endpoint; one line a decoder.

    Args:
        endpoint: where.
        lines: how each decoder is asked.
        decoders: who may be asked, by name.
        sent: decoder -> the knobs that its requests ask for.
        proofs: guarded decoder -> what its first answer proved.
    """

    endpoint: Endpoint
    lines: Mapping[str, Line]
    decoders: Mapping[str, Decoder]
    sent: Mapping[str, Mapping[str, Any]]
    proofs: dict[str, Proof] = field(default_factory=dict)
    _failed: int = 0

    def ask(self, task: EvalTask, items: Sequence[Item], todo: Sequence[Who]) -> list[list[Said]]:
        """Return the answers of each (decoder, seed) to some items of a task, all items at once.

        An answer that the server refuses to give is a `Said` with `failed`, which is never scored. Calls of the
        model, masks and memory can't be seen from here and are NaN or None; seconds are those of the request, divided
        by the requests in flight.

        Raises:
            RunError: the server is down, refuses the key, has lost the model, or an answer does not prove its guard.
        """
        found = []
        talks = [item.conversation() for item in items]
        for name, seed in todo:
            seeds = [document_seed(seed, item.key) for item in items] if self.decoders[name].sampled else None
            replies = self.lines[name].ask(talks, task.max_new_tokens, seeds)
            pairs = zip(talks, replies, strict=True)
            found.append([self._said(name, task, _pictured(talk), reply) for talk, reply in pairs])
        return found

    def probe(self, name: str) -> Reply:
        """Ask a decoder about a small picture, and note what its answer proves.

        Raises:
            RunError: it can't be asked, or does not prove its guard.
        """
        (reply,) = self.lines[name].ask([_canary()], 4, [0] if self.decoders[name].sampled else None)
        if reply.error is not None:
            raise RunError(
                f"{self.lines[name].name!r} can't be asked: {self.endpoint.reason(reply.error)} Nothing else was asked."
            )
        self._check(name, True, reply)
        return reply

    def _said(self, name: str, task: EvalTask, pictured: bool, reply: Reply) -> Said:
        if reply.error is not None:
            return _unmeasured(Said("", failed=self._failure(name, reply.error)))
        self._failed = 0
        self._check(name, pictured, reply)
        if reply.finish not in (None, "stop", "length"):
            return _unmeasured(Said("", failed=f"the server ended the answer with {reply.finish!r}"))
        tokens = len(reply.text.split()) if reply.tokens is None else reply.tokens
        cut = tokens >= task.max_new_tokens if reply.finish is None else reply.finish == "length"
        # vLLM spells an answer as what follows on the prompt, so that a first word keeps the space before it
        whole = reply.text.removeprefix(" ")
        text = until(whole, task.until)
        return _unmeasured(Said(text, tokens, ended=not cut or text != whole, seconds=reply.seconds))

    def _failure(self, name: str, error: Exception) -> str:
        """Return why there is no answer; raise where the next request would fail as well."""
        import openai

        reason = self.endpoint.reason(error)
        status = error.status_code if isinstance(error, openai.APIStatusError) else None
        if status in (401, 403, 404) or isinstance(error, openai.APIConnectionError):
            raise RunError(f"{reason} {KEPT}") from error
        if status is None or retried(status):
            self._failed += 1
            if self._failed >= IN_A_ROW:
                raise RunError(f"{reason} So it went with {self._failed} requests in a row. {KEPT}") from error
        return reason

    def _check(self, name: str, pictured: bool, reply: Reply) -> None:
        """See that the guard that was asked for ran, and no other."""
        method, model = self.decoders[name].method, self.lines[name].name
        proof = proof_of(reply.headers, reply.body, methods.REGISTRY.names())
        if method is None:
            check_plain(model, proof)
        elif pictured or proof is None or proof.method is not None:  # no picture: nothing to guard, and it says "off"
            proved = check_guarded(model, method, self.sent[name], proof, self.proofs.get(name))
            self.proofs.setdefault(name, proved)


def document_seed(seed: int, key: str) -> int:
    """Return the `seed` of a request: of the run's seed and the document; 31 bits, which every server takes."""
    return int.from_bytes(blake2b(f"{seed} {key}".encode(), digest_size=4).digest(), "big") >> 1


def _canary() -> Talk:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (96, 96), (200, 220, 240))
    ImageDraw.Draw(picture).ellipse((20, 30, 70, 80), fill=(180, 60, 40))
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": CANARY}]}]


def _pictured(talk: Talk) -> bool:
    contents = [turn["content"] for turn in talk if not isinstance(turn["content"], str)]
    return any(part["type"] == "image" for content in contents for part in content)


def _unmeasured(said: Said) -> Said:
    nan = math.nan
    return replace(said, forwards=nan, local_forwards=nan, local_tokens=nan, masks=nan)
