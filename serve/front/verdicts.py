"""What the picture says of finished answers, and which of several is best: checks, made after a model has answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio

from lvlm_guard.proof import FIELD
from lvlm_guard.serve.front.guards import Guards
from lvlm_guard.serve.vote.ballot import served_vocabulary
from lvlm_guard.verify.check import Checked, mentions
from lvlm_guard.verify.ranking import Candidate, rerank
from lvlm_guard.verify.verdict import absolute


class Pictures:
    """The pictures of one request, and who looks at them.

    Args:
        guards: where the matcher service is asked.
        check: of `lvlm_guard.proof.CHECKS`, that this is for.
        views: what the matcher is sent of each picture.
        version: of the matcher that they are for.
    """

    def __init__(self, guards: Guards, check: str, views: Sequence[bytes], version: str) -> None:
        self._guards, self._check, self._views, self.version = guards, check, views, version
        self._vocabulary = served_vocabulary()

    async def look(self) -> None:
        """Ask about a single object; raises as `verdicts` does.

        Before a model is paid for an answer, it is clear that a matcher is there and can read the pictures.
        """
        await self._support(self._vocabulary.names[:1])

    async def verdicts(self, texts: Sequence[str]) -> list[list[Checked]]:
        """Return the verdict on each object that each of some answers names, in order.

        Raises:
            MaskdError: the matcher service gave nothing usable.
            Refused: 400 or 413, it can't use the pictures.
        """
        found = [await anyio.to_thread.run_sync(mentions, text, self._vocabulary) for text in texts]
        p = await self._support(list(dict.fromkeys(mention.object for each in found for mention in each)))
        return [[Checked(it, absolute(self._guards.claim(it.object), p[it.object])) for it in each] for each in found]

    async def _support(self, objects: Sequence[str]) -> dict[str, float]:
        claims = {name: self._guards.claim(name) for name in objects}
        if not claims:
            return {}
        p = await self._guards.support(self._check, self._views, self.version, tuple(claims.values()))
        return {name: p[claim] for name, claim in claims.items()}

    def field(self, verdicts: Sequence[list[Checked]] | None = None, **more: Any) -> dict[str, Any]:
        """Return what an answer's body says of its check; of each choice's verdicts, where they are known."""
        said: dict[str, Any] = {"method": None, "knobs": {}, "check": self._check, "scores": self.version}
        if verdicts is not None:
            said["verdicts"] = [row(choice, one) for choice, each in enumerate(verdicts) for one in each]
        return {FIELD: said | more}


def row(choice: int, checked: Checked) -> dict[str, Any]:
    """Return a verdict as clients see it; start and end are places in the choice's text, in characters."""
    it, verdict = checked.mention, checked.verdict
    label = "unknown" if verdict.label == "unsure" else verdict.label
    place = {"choice": choice, "object": it.object, "text": it.text, "start": it.start, "end": it.end}
    return place | {"probability": verdict.p_supported, "label": label}


def ranked(choices: Sequence[dict[str, Any]], verdicts: Sequence[list[Checked]]) -> tuple[int, list[dict[str, Any]]]:
    """Return the place of the best choice, and what is said of each, by `lvlm_guard.verify.ranking`.

    Where a choice comes without log-probabilities, verdicts alone decide.
    """
    texts, logs = [text_of(choice["message"]) for choice in choices], [_log_prob(choice) for choice in choices]
    told = [0.0 if log is None or None in logs else log for log in logs]
    made = [
        Candidate(text, log, None, [one.verdict for one in each])
        for text, log, each in zip(texts, told, verdicts, strict=True)
    ]
    order = rerank(made)
    scores = dict(order)
    rows = [
        {
            "index": i,
            "chosen": i == order[0][0],
            "score": scores[i],
            "log_prob": logs[i],
            "doubt": it.doubt,
            "text": text,
        }
        for i, (text, it) in enumerate(zip(texts, made, strict=True))
    ]
    return order[0][0], rows


def text_of(message: Any) -> str:
    """Return what a message, or a piece of one, says; "" where it says nothing.

    Raises:
        ValueError: it says something that can't be checked, such as a list of parts.
    """
    content = message.get("content") if isinstance(message, dict) else message
    if not isinstance(content, str | None) or not isinstance(message, dict):
        raise ValueError("content that is no text")
    return content or ""


def _log_prob(choice: dict[str, Any]) -> float | None:
    """Return the mean log-probability of a choice's tokens (nats), None where it is not told."""
    told = (choice.get("logprobs") or {}).get("content") or []
    return sum(float(one["logprob"]) for one in told) / len(told) if told else None
