"""Asking a tiny guarded model."""

from __future__ import annotations

from typing import Any

import tiny
import torch
from matchers import Brightness

from lvlm_guard import methods

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
