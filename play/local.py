"""A model in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image

from lvlm_guard.api import guard, resolve
from lvlm_guard.knobs import defaults_of
from lvlm_guard.matching import load_matcher
from lvlm_guard.play import snippet
from lvlm_guard.play.backend import GREEDY, Asked, offered_methods
from lvlm_guard.play.judging import Judge, objects_of
from lvlm_guard.pretrained import EMBEDDED, ask, load_model, spoken, unknown_words
from lvlm_guard.report.answer import Said

STEP = 0.05
"""Seconds between two looks at an answer that grows, at least: each is drawn in every browser that waits."""


class Local:
    """A model, loaded and guarded here.

    Args:
        name: "embedded", a folder, or a hub id.
        matcher: as `load_matcher` takes it; None for the model's own.
        objects: the path of a list of what is verified and voted on; None for the model's own.
        device, dtype: as `load_model` takes them.

    Raises:
        WeightsError: model or matcher can't be had.
        UnsupportedModelError: the model can't be guarded.
    """

    def __init__(
        self,
        name: str = EMBEDDED,
        *,
        matcher: str | None = None,
        objects: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        self.name, self.embedded = name, name == EMBEDDED
        self.loaded = {"device": device, "dtype": dtype}
        self._model, self._processor = guard(*load_model(name, device=device, dtype=dtype))
        self._usual = {"matcher": matcher, "objects": objects_of(objects, self.embedded)}
        self.judge = Judge(load_matcher(matcher, model=self._model), self._usual["objects"])
        self.methods = offered_methods()
        if self.embedded:
            self._warm_up()

    def _warm_up(self) -> None:
        """Answer once by each method, so that the page's first answers don't pay for what every first call costs."""
        picture = Image.new("RGB", (96, 96), "gray")
        for name in self.methods:
            for _ in self.answers(Asked(picture, "is there a dog in the image ?", name, most_tokens=2)):
                pass

    @property
    def title(self) -> str:
        """Its name."""
        return "the embedded model" if self.embedded else self.name

    def method(self, asked: Asked) -> Any:
        """Return the method with its knobs, False for the plain answer; raises `KnobError`."""
        if asked.method == GREEDY:
            return False
        usual = {k: v for k, v in self._usual.items() if v is not None and k in defaults_of(asked.method)}
        return resolve(asked.method, usual | dict(asked.knobs))

    def answers(self, asked: Asked) -> Iterator[Said]:
        """Return one answer as it grows.

        Each pays for its own matching: what the matcher remembers of the picture goes before.
        """
        from transformers import StoppingCriteriaList, TextIteratorStreamer

        method, left = self.method(asked), threading.Event()
        inputs = ask(self._processor, [[asked.picture]], [asked.prompt])
        inputs = inputs.to(self._model.device, dtype=self._model.dtype)
        start = inputs["input_ids"].shape[1]
        streamer = TextIteratorStreamer(self._processor.tokenizer, skip_prompt=True, skip_special_tokens=True)

        def stop(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return torch.full((len(ids),), left.is_set(), device=ids.device)

        def run() -> tuple[Any, float]:
            self.judge.forget()
            began = time.perf_counter()
            output = self._model.generate(
                **inputs,
                guard=method,
                max_new_tokens=asked.most_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([stop]),
                return_dict_in_generate=True,
            )
            return output, time.perf_counter() - began

        def ended(_: Future[Any]) -> None:
            streamer.text_queue.put(streamer.stop_signal)  # a call that fails never ends its stream

        with ThreadPoolExecutor(1) as pool:
            try:
                answer = pool.submit(run)
                answer.add_done_callback(ended)
                yield from _growing(asked.method, streamer)
                output, seconds = answer.result()
            finally:
                left.set()
        text = self.decoded(output.sequences[0, start:].tolist()).strip()
        yield Said(asked.method, text, seconds, output.guard.to_dict() if method else None)

    def decoded(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return spoken(self._processor, tokens)

    def matched_text(self, asked: Asked) -> str:
        """Return what the guarded processor finds in the prompt."""
        (view,) = ask(self._processor, [[asked.picture]], [asked.prompt])["guard_views"].views()
        return str(view.text)

    def remarks(self, prompt: str) -> list[str]:
        """Return which words of the prompt the model does not know."""
        unknown = unknown_words(self._processor, prompt)
        return [f"The model has no words for: {', '.join(unknown)}. It reads <unk> there."] if unknown else []

    def script(self, picture: str, questions: list[Asked]) -> str:
        """Return a script on this package."""
        loaded = {key: value for key, value in self.loaded.items() if value != "auto"}
        built: Mapping[str, Any] = {asked.method: self.method(asked) for asked in questions}
        return snippet.local(self.name, loaded, picture, questions[0], list(built.values()))


def _growing(method: str, pieces: Iterator[str]) -> Iterator[Said]:
    """Return what has been said so far, not oftener than `STEP` allows."""
    text, began, shown = "", time.perf_counter(), 0.0
    for piece in pieces:
        text += piece
        now = time.perf_counter()
        if piece and now - shown >= STEP:
            shown = now
            yield Said(method, text.strip(), now - began)
