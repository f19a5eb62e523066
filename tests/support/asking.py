"""Asking a tiny guarded model."""

from __future__ import annotations

from typing import Any

import tiny
import torch
from matchers import Brightness

from lvlm_guard import methods

SEEN = ("pixel_values", "image_sizes")
"""What a cache holds of a picture; transformers refuses the pixels a second time."""

RUN: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}


def agla(**knobs: Any) -> methods.AGLA:
    """AGLA with a matcher that needs no weights."""
    return methods.AGLA(matcher=Brightness(), **knobs)


def ask(pair: tuple[Any, Any], *rows: tuple[Any, ...], **extra: Any) -> Any:
    """Inputs of rows (question, seeds of pictures ...); float64 like the tiny models."""
    _, processor = pair
    prompts = [tiny.prompt(processor, row[0], len(row) - 1) for row in rows]
    pictures = [tiny.picture(seed) for row in rows for seed in row[1:]] or None
    made = processor(images=pictures, text=prompts, padding=True, return_tensors="pt", **extra)
    return made.to(torch.float64)


def next_turn(inputs: Any, sequences: torch.Tensor, more: int = 4) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inputs of all that was said and a few tokens more, with the picture and without."""
    ids = torch.cat([sequences, torch.full((len(sequences), more), 70)], 1)
    mask, types = inputs["attention_mask"], inputs.get("mm_token_type_ids")
    turn = {**inputs, "input_ids": ids}
    turn["attention_mask"] = torch.cat([mask, mask.new_ones(len(ids), ids.shape[1] - mask.shape[1])], 1)
    if types is not None:
        turn["mm_token_type_ids"] = torch.cat([types, types.new_zeros(len(ids), ids.shape[1] - types.shape[1])], 1)
    return turn, {key: value for key, value in turn.items() if key not in SEEN}


class Collate:
    """Makes the inputs of pictures by their seeds, in a DataLoader's worker too."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, seeds: list[int]) -> Any:
        prompts = [tiny.prompt(self.processor, "What?") for _ in seeds]
        return self.processor(images=[tiny.picture(seed) for seed in seeds], text=prompts, return_tensors="pt")
