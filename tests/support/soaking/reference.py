"""What a server has to say: the answers of the transformers engine in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from soaking.endpoint import Chat

CLOSE = 1e-3
"""Nats between the best two tokens below which float32 sums in another order may pick the other one."""


@dataclass(frozen=True)
class Expected:
    """An answer.

    Args:
        text: of it, without what stands around it.
        ids: of its tokens, the end's included.
        finish: "stop" or "length".
    """

    text: str
    ids: tuple[int, ...]
    finish: str

    def begins(self, text: str, ids: tuple[int, ...]) -> bool:
        """Return whether the answer begins with what came of one."""
        return self.text.startswith(text.strip()) and self.ids[: len(ids)] == ids


class Reference:
    """The embedded model, guarded in this process.

    Args:
        objects: what `vote` may vote on in free text; the server's own.
    """

    def __init__(self, objects: Sequence[str]) -> None:
        from lvlm_guard.api import guard
        from lvlm_guard.pretrained import load_model

        self._objects = tuple(objects)
        self._model, self._processor = guard(*load_model("embedded", device="cpu"))

    def answer(self, image: Image.Image, chat: Chat) -> Expected | None:
        """Return the answer to a question about a picture; None where two tokens are too close to call."""
        import torch

        from lvlm_guard.pretrained import ask, spoken

        inputs = ask(self._processor, [[image]], [chat.prompt])
        with torch.inference_mode():
            made = self._model.generate(
                **inputs,
                guard=self._method(chat.guard, chat.knobs) or False,
                max_new_tokens=chat.tokens,
                do_sample=False,
                return_dict_in_generate=True,
                output_scores=True,
            )
        for scores in made.scores:
            best, second = scores[0].topk(2).values.tolist()
            if best - second < CLOSE:
                return None
        tokens = made.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        ended = tokens[-1] == self._model.generation_config.eos_token_id
        return Expected(spoken(self._processor, tokens).strip(), tuple(tokens), "stop" if ended else "length")

    def _method(self, guard: str | None, knobs: Mapping[str, float]) -> Any:
        from lvlm_guard.api import resolve

        if guard is None:
            return None
        return resolve(guard, {**knobs, **({"objects": self._objects} if guard == "vote" else {})})
