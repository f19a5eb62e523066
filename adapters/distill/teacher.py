"""Stage 1: the guarded model answers, and what it says is kept with how it came to say it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from lvlm_guard.adapters.distill.answers import Answer, AnswerFile, Lesson, Pictures
from lvlm_guard.adapters.distill.settings import Lessons
from lvlm_guard.api import resolve
from lvlm_guard.engine.method import Method
from lvlm_guard.engine.trace import answers_of
from lvlm_guard.errors import ImageError, UnsupportedCallError
from lvlm_guard.matching import Matcher, load_matcher
from lvlm_guard.matching.vocabulary import article
from lvlm_guard.pretrained import ask, spoken

GREEDY = {
    "do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0,
}  # fmt: skip
SOFT = 20  # most likely tokens of the guard's distribution that are kept at an open step
LEAST = 1e-4  # their least probability
CLAIM = "is there {article} {object} in the image?"  # what the matcher is asked about an object, as in `vote`

Asked = tuple[str, str | None]
"""A prompt, and the object that it is about."""


def filled(template: str, name: str) -> str:
    """Return a prompt about an object."""
    return template.replace("{article}", article(name)).replace("{object}", name)


def method_of(lessons: Lessons) -> Method:
    """Return the guard of some lessons; one that votes on objects votes on those of the lessons.

    Raises:
        UnknownNameError, KnobError: see `api.resolve`.
    """
    knobs = dict(lessons.knobs)
    if "objects" in _fields(lessons.method) and lessons.objects:
        knobs.setdefault("objects", lessons.objects)
    return resolve(lessons.method, knobs)


def ends_of(model: Any) -> set[int]:
    """Return the end-of-text tokens of a model; InstructBLIP's are its language model's."""
    inner = getattr(getattr(model, "language_model", None), "generation_config", None)
    ends = (inner or model.generation_config).eos_token_id
    return set(ends) if isinstance(ends, list) else {ends}


def _fields(method: str) -> set[str]:
    from dataclasses import fields

    from lvlm_guard.methods import REGISTRY

    return {f.name for f in fields(REGISTRY.get(method))}


class Teacher:
    """A guarded model and processor that answer lessons.

    Args:
        model, processor: guarded.
        method: the guard.
        lessons: what to ask.
        at_once: prompts of one generate() call.
    """

    def __init__(self, model: Any, processor: Any, method: Method, lessons: Lessons, at_once: int) -> None:
        self.model, self.processor, self.method, self.lessons = model, processor, method, lessons
        self.at_once = at_once
        self.matcher: Matcher | None = None
        if hasattr(method, "matcher"):
            self.matcher = load_matcher(method.matcher, model=model)

    def answer(
        self,
        pictures: Pictures,
        names: Sequence[str],
        file: AnswerFile,
        advance: Callable[[int], object],
        other: Sequence[str] = (),
    ) -> None:
        """Answer about pictures, and append to the file after each few of them.

        Args:
            names: of the pictures.
            advance: told how many pictures were done.
            other: further prompts for each picture.

        Raises:
            ImageError: a picture can't be read, and the lessons refuse such.
            GuardError: whatever generate() raises.
        """
        few = max(1, self.at_once // 16)
        for start in range(0, len(names), few):
            part = names[start : start + few]
            images: dict[str, Image] = {}
            failed: dict[str, str] = {}
            for name in part:
                try:
                    images[name] = pictures.load(name)
                except ImageError as error:
                    if self.lessons.corrupt == "refuse":
                        raise
                    failed[name] = str(error)
            answers = self._answers(images, other)
            file.add([Lesson(name, answers.get(name, ()), failed.get(name)) for name in part])
            advance(len(part))

    def _answers(self, images: dict[str, Image], other: Sequence[str]) -> dict[str, list[Answer]]:
        asked = [(name, one) for name in images for one in self.asked(name, images[name], other)]
        # answers of one length end together: captions are not kept waiting for by yes and no
        asked.sort(key=lambda pair: pair[1][1] is not None)
        found: dict[str, list[Answer]] = {name: [] for name in images}
        for start in range(0, len(asked), self.at_once):
            for free in (True, False):
                block = [pair for pair in asked[start : start + self.at_once] if (pair[1][1] is None) == free]
                if block:
                    said = self._generate([images[name] for name, _ in block], [one for _, one in block])
                    for (name, _), answer in zip(block, said, strict=True):
                        found[name].append(answer)
        if self.matcher is not None:
            self.matcher.forget()
        return found

    def asked(self, name: str, image: Image, other: Sequence[str] = ()) -> list[Asked]:
        """Return what is asked about a picture: a free prompt, objects, and the other prompts.

        Where not all objects are asked about, half of them are those that the matcher finds best supported: among
        these are the ones that the model will name, rightly or not. The rest is drawn.
        """
        lessons = self.lessons
        rng = np.random.default_rng([lessons.seed, *name.encode()])
        free = [lessons.free[int(rng.integers(len(lessons.free)))]] if lessons.free else []
        names = list(lessons.names) if lessons.templates else []
        if lessons.questions < len(names):
            drawn = [names[place] for place in rng.permutation(len(names))]
            likely = sorted(drawn, key=lambda one: -(self.support(image, names).get(one) or 0.0))
            names = list(dict.fromkeys([*likely[: lessons.questions // 2], *drawn]))[: lessons.questions]
        templates = [
            lessons.templates[int(place)] for place in rng.integers(len(lessons.templates) or 1, size=len(names))
        ]
        return [
            *((prompt, None) for prompt in (*free, *other)),
            *((filled(template, one), one) for template, one in zip(templates, names, strict=True)),
        ]

    def support(self, image: Image, names: Sequence[str]) -> dict[str, float]:
        """Return the matcher's probability that each object is in the picture; {} where there is none to ask."""
        if self.matcher is None or not names:
            return {}
        try:
            found = self.matcher.support(image, [filled(CLAIM, name) for name in names])
        except UnsupportedCallError:  # this one gives maps only
            return {}
        return dict(zip(names, found.tolist(), strict=True))

    def _generate(self, images: Sequence[Image], asked: Sequence[Asked]) -> list[Answer]:
        inputs = ask(self.processor, [[image] for image in images], [prompt for prompt, _ in asked])
        start = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            out = self.model.generate(
                **inputs.to(self.model.device, self.model.dtype),
                **GREEDY,
                guard=self.method,
                max_new_tokens=self.lessons.max_new_tokens,
                return_dict_in_generate=True,
                output_logits=True,
            )
        tokens = answers_of(out.sequences, start, ends_of(self.model))
        supports = self._supports(images, asked)
        return [
            self._read(one, asked[row], supports[row], [step[row] for step in out.logits], out.guard.steps[row])
            for row, one in enumerate(tokens)
        ]

    def _supports(self, images: Sequence[Image], asked: Sequence[Asked]) -> list[float | None]:
        by_image: dict[int, dict[str, float]] = {}
        for image, (_, name) in zip(images, asked, strict=True):
            if name is not None and id(image) not in by_image:
                names = [other for one, (_, other) in zip(images, asked, strict=True) if one is image and other]
                by_image[id(image)] = self.support(image, names)
        return [
            by_image[id(image)].get(name) if name is not None else None
            for image, (_, name) in zip(images, asked, strict=True)
        ]

    def _read(
        self, tokens: list[int], asked: Asked, support: float | None, logits: Sequence[torch.Tensor], steps: Any
    ) -> Answer:
        open_ = [t for t, step in enumerate(steps) if not step.decided]
        soft = []
        for t in open_:
            p, ids = logits[t].float().softmax(-1).topk(min(SOFT, logits[t].shape[-1]))
            kept = p >= LEAST
            soft.append((ids[kept].tolist(), [round(value, 5) for value in p[kept].tolist()]))
        return Answer(
            prompt=asked[0],
            object=asked[1],
            support=None if support is None else round(support, 5),
            tokens=tokens,
            text=spoken(self.processor, tokens).strip(),
            open=open_,
            changed=[t for t, step in enumerate(steps) if step.overruled is not None],
            soft=soft,
        )
