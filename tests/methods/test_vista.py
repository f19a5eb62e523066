"""VISTA's directions: what a picture adds to a layer's last state, and nothing where it adds rounding."""

import any_families
import pytest
import tiny
import torch

from lvlm_guard import guard, methods
from lvlm_guard.errors import UnsupportedModelError

RUN = {"max_new_tokens": 5, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
PICTURES = [[tiny.picture(1, 96, 48)], [tiny.picture(2, 56, 56)]]


@pytest.mark.parametrize("name", ["gemma3", "paligemma", pytest.param("qwen3_5", marks=pytest.mark.slow)])
def test_an_answer_in_a_batch_is_the_one_that_it_is_alone(name):
    # gemma3: the picture lies behind the first layer's window; qwen3_5: linear attention has forgotten it; paligemma
    # reads both ways without token types, but a padded row from left to right
    model, processor = guard(*any_families.make(name), methods.VISTA(lam=1.0))
    family = model._lvlm_guard.family
    prompts = [family.asked(processor, f"Is there a {thing}?", 1) for thing in ("dog", "red traffic light")]

    def answered(rows):
        inputs = processor(images=PICTURES[rows], text=prompts[rows], padding=True, return_tensors="pt")
        return torch.stack(model.generate(**inputs, **RUN).scores, dim=1)

    together = answered(slice(0, 2))
    for row in (0, 1):
        alone = answered(slice(row, row + 1))[0]
        assert torch.allclose(together[row, : len(alone)], alone, atol=1e-3 * float(alone.std()))


@pytest.mark.parametrize("name", ["mllama", "instructblip"])
def test_a_model_that_reads_no_prompt_without_a_picture_is_refused_by_name(name):
    model, processor = guard(*any_families.make(name), "vista")
    prompt = model._lvlm_guard.family.asked(processor, "Is there a dog?", 1)
    inputs = processor(images=PICTURES[0], text=[prompt], padding=True, return_tensors="pt")
    with pytest.raises(UnsupportedModelError, match="reads no prompt without a picture"):
        model.generate(**inputs, max_new_tokens=2)
