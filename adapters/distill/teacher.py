"""Stage 1: the guarded model answers, and what it says is kept with how it came to say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from lvlm_guard.adapters.distill.lessons import Answer, AnswerFile, Lesson, Lessons, Pictures
from lvlm_guard.adapters.training.recipe import Advance
from lvlm_guard.api import resolve
from lvlm_guard.engine.method import Method
from lvlm_guard.engine.trace import answers_of
from lvlm_guard.errors import ImageError, UnsupportedCallError
from lvlm_guard.matching import Matcher, load_matcher
from lvlm_guard.matching.vocabulary import article
from lvlm_guard.methods import REGISTRY
from lvlm_guard.pretrained import ask, spoken

GREEDY = {
    "do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0,
}  # fmt: skip
SOFT = 20  # most likely tokens of the guard's distribution that are kept at an open step
LEAST = 1e-4  # their least probability
CLAIM = "is there {article} {object} in the image?"  # what the matcher is asked about an object, as in `vote`

Asked = tuple[str, str | None]  # a prompt, and the object that it is about


def filled(template: str, name: str) -> str:
    """Return a prompt about an object."""
    return template.replace("{article}", article(name)).replace("{object}", name)


def method_of(lessons: Lessons) -> Method:
    """Return the guard of some lessons; one that votes on objects votes on theirs. Raises as `api.resolve`."""
    takes_objects = "objects" in {field.name for field in fields(REGISTRY.get(lessons.method))}
    objects = {"objects": lessons.objects} if takes_objects and lessons.objects else {}
    return resolve(lessons.method, {**objects, **lessons.knobs})


def answered(
    model: Any, processor: Any, images: Sequence[Image], prompts: Sequence[str], most: int, **how: Any
) -> tuple[list[list[int]], Any]:
    """Return the tokens of greedy answers of at most so many to a prompt about each picture, and what generate() gave.

    The model and its processor are guarded or not; `how` are further options of generate().
    """
    inputs = ask(processor, [[image] for image in images], prompts)
    given = inputs["input_ids"]
    with torch.inference_mode():
        out = model.generate(**inputs.to(model.device, model.dtype), **GREEDY, max_new_tokens=most, **how)
    tokens: Tensor = out if isinstance(out, Tensor) else out.sequences
    # InstructBLIP's stock generate() gives the answer alone, all others the prompt before it
    prompt = given.shape[1]
    whole = tokens.shape[1] > prompt and torch.equal(tokens[:, :prompt].cpu(), given.cpu())
    # its end-of-text tokens are its language model's
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner = getattr(getattr(base, "language_model", None), "generation_config", None)
    ends = (inner or base.generation_config).eos_token_id
    return answers_of(tokens, prompt if whole else 0, set(ends) if isinstance(ends, list) else {ends}), out


class Teacher:
    """A guarded model and processor that answer lessons, `at_once` prompts of one generate() call."""

    def __init__(self, model: Any, processor: Any, method: Method, lessons: Lessons, at_once: int) -> None:
        self.model, self.processor, self.method, self.lessons = model, processor, method, lessons
        self.at_once = at_once
        self.matcher: Matcher | None = None
        if hasattr(method, "matcher"):
            self.matcher = load_matcher(method.matcher, model=model)

    def answer(
        self, pictures: Pictures, names: Sequence[str], file: AnswerFile, advance: Advance, other: Sequence[str] = ()
    ) -> None:
        """Answer prompts, the `other` too, about pictures by name, and append to the file after each few of them.

        Raises:
            ImageError: a picture can't be read, and the lessons refuse such.
            GuardError: whatever generate() raises.
        """
        few = max(1, self.at_once // 16)
        for start in range(0, len(names), few):
            part, failed = names[start : start + few], dict[str, str]()
            images: dict[str, Image] = {}
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

    def _answers(self, images: Mapping[str, Image], other: Sequence[str]) -> dict[str, list[Answer]]:
        asked = [(name, one) for name in images for one in self.asked(name, images[name], other)]
        found: dict[str, list[Answer]] = {name: [] for name in images}
        for free in (True, False):  # answers of one length end together: captions don't keep yes and no waiting
            some = [pair for pair in asked if (pair[1][1] is None) == free]
            for start in range(0, len(some), self.at_once):
                block = some[start : start + self.at_once]
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
        lessons, rng = self.lessons, np.random.default_rng([self.lessons.seed, *name.encode()])
        free = [lessons.free[int(rng.integers(len(lessons.free)))]] if lessons.free else []
        names = list(lessons.names) if lessons.templates else []
        if lessons.questions < len(names):
            drawn = [names[place] for place in rng.permutation(len(names))]
            support = self.support(image, names)
            likely = sorted(drawn, key=lambda one: -support.get(one, 0.0))
            names = list(dict.fromkeys([*likely[: lessons.questions // 2], *drawn]))[: lessons.questions]
        places = rng.integers(len(lessons.templates) or 1, size=len(names))
        asked = [(filled(lessons.templates[int(place)], one), one) for place, one in zip(places, names, strict=True)]
        return [*((prompt, None) for prompt in (*free, *other)), *asked]

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
        how = {"return_dict_in_generate": True, "output_logits": True, "guard": self.method}
        prompts = [prompt for prompt, _ in asked]
        tokens, out = answered(self.model, self.processor, images, prompts, self.lessons.max_new_tokens, **how)
        known: dict[int, dict[str, float]] = {}
        for image in images:
            if id(image) not in known:
                names = [name for one, (_, name) in zip(images, asked, strict=True) if one is image and name]
                known[id(image)] = self.support(image, names)
        answers = []
        for row, ((prompt, name), steps) in enumerate(zip(asked, out.guard.steps, strict=True)):
            support = known[id(images[row])].get(name or "")
            open_ = [t for t, step in enumerate(steps) if not step.decided]
            answers.append(
                Answer(
                    prompt=prompt,
                    object=name,
                    support=None if support is None else round(support, 5),
                    tokens=tokens[row],
                    text=spoken(self.processor, tokens[row]).strip(),
                    open=open_,
                    changed=[t for t, step in enumerate(steps) if step.overruled is not None],
                    soft=[_soft(out.logits[t][row]) for t in open_],
                )
            )
        return answers


def _soft(logits: Tensor) -> tuple[list[int], list[float]]:
    """Return the most likely tokens of a step, and their probabilities."""
    p, ids = logits.float().softmax(-1).topk(min(SOFT, logits.shape[-1]))
    kept = p >= LEAST
    return ids[kept].tolist(), [round(value, 5) for value in p[kept].tolist()]
