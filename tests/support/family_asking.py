"""Asking a tiny model of any family, guarded by AGLA."""

import tiny
from matchers import Brightness

from lvlm_guard import methods

STEPS = 6
RUN = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}
QUESTIONS = ["Is there a dog in the picture?", "What colour is it?", "Where?"]


def agla(**knobs):
    return methods.AGLA(matcher=Brightness(), **({"beta": 0.05, "alpha": 1.0} | knobs))


def inputs_of(pair, count=2, sizes=((96, 48), (56, 56)), **more):
    model, processor = pair
    family = model._lvlm_guard.family
    if family.model_type == "perception_lm":  # its processor can't batch pictures of unequal shapes
        sizes = sizes[:1] * 2
    prompts = [family.asked(processor, QUESTIONS[i % 3], 1) for i in range(count)]
    pictures = [tiny.picture(10 + i, *sizes[i % 2]) for i in range(count)]
    made = processor(images=[[p] for p in pictures], text=prompts, padding=True, return_tensors="pt", **more)
    return made.to(model.dtype)
