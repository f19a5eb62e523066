"""What `lvlm_guard`'s own generate() says in this process to a talk in OpenAI's form."""

from __future__ import annotations

import base64
import functools
import io
import json
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessor

from lvlm_guard import guard
from lvlm_guard.embedded import world
from lvlm_guard.methods import AGLA, Vote
from lvlm_guard.pretrained import load_model

METHODS = {"agla": AGLA, "vote": functools.partial(Vote, objects=world.CLASSES)}


@dataclass(frozen=True)
class Expected:
    """An answer of generate().

    Args:
        prompt: its tokens.
        tokens: of the answer.
        text: of the answer.
        logits: that each token was chosen by, assembled, [tokens, V] float32.
        asked: the texts that pictures were matched with, one a picture.
    """

    prompt: list[int]
    tokens: list[int]
    text: str
    logits: Tensor
    asked: list[str]

    def logprobs(self, temperature: float = 1.0) -> Tensor:
        """Return log-probabilities, [tokens, V], none lower than vLLM writes them."""
        return (self.logits / temperature).log_softmax(-1).clamp(min=-9999.0)


class _Forced(LogitsProcessor):
    """Notes the logits of each step and has a given answer written."""

    def __init__(self, start: int, answer: list[int]) -> None:
        self.start, self.answer, self.seen = start, answer, []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.seen.append(scores[0].clone())
        token = self.answer[input_ids.shape[1] - self.start]
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([token]), 0.0)


class Reference:
    """The guarded embedded model in this process; greedy answers are remembered."""

    def __init__(self) -> None:
        self.model, self.processor = guard(*load_model("embedded"))
        self._greedy = functools.lru_cache(maxsize=None)(self._said)

    def greedy(self, name: str, talk: list[dict[str, Any]], tokens: int = 40, **knobs: float) -> Expected:
        """Return the greedy answer of a served name, "embedded-agla" and the like."""
        return self._greedy(name, json.dumps(talk), tokens, tuple(sorted(knobs.items())), None)

    def forced(self, name: str, talk: list[dict[str, Any]], answer: list[int], **knobs: float) -> Expected:
        """Return what the logits were had the answer been this."""
        return self._said(name, json.dumps(talk), len(answer), tuple(sorted(knobs.items())), answer)

    def _said(self, name: str, talk: str, tokens: int, knobs: Any, answer: list[int] | None) -> Expected:
        _, _, method = name.partition("-")
        inputs = self.processor.apply_chat_template(
            [[_message(message) for message in json.loads(talk)]],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
        start = inputs["input_ids"].shape[1]
        forced = None if answer is None else _Forced(start, answer)
        views = inputs.get("guard_views")
        out = self.model.generate(
            **inputs,
            guard=METHODS[method](**dict(knobs)) if method else False,
            max_new_tokens=tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            logits_processor=[forced] if forced else None,
        )
        said = out.sequences[0, start:].tolist()
        return Expected(
            inputs["input_ids"][0].tolist(),
            said,
            self.processor.tokenizer.decode(said, skip_special_tokens=True),
            torch.stack(forced.seen) if forced else torch.cat(out.scores).float(),
            [view.text for view in views.views()] if views is not None else [],
        )


def _message(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    return {"role": message["role"], "content": [_part(part) for part in content]}


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return part
    data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
    return {"type": "image", "image": Image.open(io.BytesIO(data)).convert("RGB")}
