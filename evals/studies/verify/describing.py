"""Descriptions by the plain model, greedy, and how probable it found each token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lvlm_guard.evals.infer.generate import answer_length, prepare
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.pretrained import spoken

GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}


@dataclass(frozen=True)
class Piece:
    """What one token adds to a text.

    Args:
        start, end: of it, in characters.
        log_prob: of the token (nats), given all before it, under the plain model.
    """

    start: int
    end: int
    log_prob: float


@dataclass(frozen=True)
class Description:
    """What the model says of a picture.

    Args:
        key: the item's.
        text: the description.
        pieces: its tokens that write something, in order.
        ended: whether it ended by itself; False: it was cut at the token limit.
        seconds: its share of the call's time.
    """

    key: str
    text: str
    pieces: tuple[Piece, ...]
    ended: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return asdict(self) | {"pieces": [[p.start, p.end, round(p.log_prob, 6)] for p in self.pieces]}

    @classmethod
    def of(cls, row: dict[str, Any]) -> Description:
        """Return what `to_dict` gave."""
        pieces = tuple(Piece(start, end, log_prob) for start, end, log_prob in row["pieces"])
        return cls(row["key"], row["text"], pieces, row["ended"], row["seconds"])


def describe(model: Any, processor: Any, task: EvalTask, items: Sequence[Item]) -> list[Description]:
    """Return the plain greedy descriptions of some items, made in one batch.

    Args:
        model, processor: not guarded.
        task: gives the token limit.
        items: what is asked.

    Raises:
        ImageError: a picture is missing or damaged.
    """
    began = time.perf_counter()
    inputs = prepare(processor, items).to(model.device, model.dtype)
    with torch.inference_mode():
        out = model.generate(
            **inputs, **GREEDY, max_new_tokens=task.max_new_tokens, output_logits=True, return_dict_in_generate=True
        )
        answers = out.sequences[:, inputs["input_ids"].shape[1] :]
        chosen = [
            step.float().log_softmax(-1).gather(-1, answers[:, place, None].to(step.device))[:, 0].cpu()
            for place, step in enumerate(out.logits)
        ]
    log_probs = torch.stack(chosen, -1)  # [batch, tokens]
    seconds = (time.perf_counter() - began) / len(items)
    eos = model.generation_config.eos_token_id
    ends = set(eos) if isinstance(eos, list) else {eos} if eos is not None else set()
    found = []
    for item, row, each in zip(items, answers.tolist(), log_probs.tolist(), strict=True):
        length, ended = answer_length(row, ends)
        text, pieces = _pieces(processor, row[:length], each)
        found.append(Description(item.key, text, pieces, ended, seconds))
    return found


def _pieces(processor: Any, tokens: Sequence[int], log_probs: Sequence[float]) -> tuple[str, tuple[Piece, ...]]:
    """Return a text and its tokens' places: a token writes what its text is longer by, whatever the tokenizer."""
    text = spoken(processor, tokens)
    pieces, start = [], 0
    for place in range(len(tokens)):
        end = min(len(spoken(processor, tokens[: place + 1])), len(text))
        if end > start:
            pieces.append(Piece(start, end, log_probs[place]))
            start = end
    return text, tuple(pieces)
