"""Descriptions by the plain model, greedy, and how probable it found each token."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import torch

from lvlm_guard.evals.infer.generate import answer_length, prepare
from lvlm_guard.evals.spec.items import EvalTask, Item, Said
from lvlm_guard.pretrained import spoken

GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}

Piece = tuple[int, int, float]
"""What a token adds to a text: start and end in characters, and the token's log-probability (nats) given all before
it, under the plain model."""


def describe(model: Any, processor: Any, task: EvalTask, items: Sequence[Item]) -> list[Said]:
    """Return the plain greedy descriptions of some items, made in one batch; `proof` holds their pieces.

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
    log_probs = torch.stack(chosen, -1).tolist()  # [batch, tokens]
    seconds = (time.perf_counter() - began) / len(items)
    eos = model.generation_config.eos_token_id
    ends = set(eos) if isinstance(eos, list) else {eos} if eos is not None else set()
    found = []
    for row, each in zip(answers.tolist(), log_probs, strict=True):
        length, ended = answer_length(row, ends)
        text, pieces = _pieces(processor, row[:length], each)
        found.append(Said(text, length, ended, seconds, forwards=length / len(items), proof=json.dumps(pieces)))
    return found


def pieces_of(proof: str) -> list[Piece]:
    """Return the pieces that `describe` left with a description."""
    return [(start, end, log_prob) for start, end, log_prob in json.loads(proof)]


def _pieces(processor: Any, tokens: Sequence[int], log_probs: Sequence[float]) -> tuple[str, list[Piece]]:
    """Return a text and its tokens' places: a token writes what its text is longer by, whatever the tokenizer."""
    text = spoken(processor, tokens)
    pieces: list[Piece] = []
    start = 0
    for place in range(len(tokens)):
        end = min(len(spoken(processor, tokens[: place + 1])), len(text))
        if end > start:
            pieces.append((start, end, round(log_probs[place], 6)))
            start = end
    return text, pieces
