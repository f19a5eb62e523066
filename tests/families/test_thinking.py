"""Models that think first are guarded from their first token on: their thoughts and their answer."""

import any_families
import pytest
import tiny
import torch
from matchers import Brightness

from lvlm_guard import guard, methods
from lvlm_guard.cli.doctor import THINKS, family_rows, thinks_first

STEPS, END = 6, 3


@pytest.mark.parametrize("execution", ["lazy", "batched"])
@pytest.mark.parametrize("name", ["qwen3_5", pytest.param("glm4v", marks=pytest.mark.slow)])
def test_every_token_is_guarded_before_and_behind_the_answers_mark(name, execution):
    model, processor = guard(*any_families.make(name), methods.AGLA(matcher=Brightness(), beta=0.0, alpha=1.0))
    assert thinks_first(processor)
    mark = processor.tokenizer("</think>", add_special_tokens=False)["input_ids"]
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a dog?"}]}],
        add_generation_prompt=True,
    )
    assert text.endswith("<think>\n")
    inputs = processor(images=[tiny.picture(1, 96, 48)], text=[text], return_tensors="pt")
    assert inputs["guard_views"].views()[0].text == "Is there a dog?"  # the mark is no part of the question
    prompt, whole = inputs["input_ids"].shape[1], torch.tensor([70, 71, 72, *mark, 73, 74])
    run = {"max_new_tokens": len(whole), "min_new_tokens": len(whole), "do_sample": False, "output_scores": True,
           "prefix_allowed_tokens_fn": lambda row, ids: [int(whole[len(ids) - prompt])]}  # fmt: skip
    out = model.generate(**inputs, **run, return_dict_in_generate=True, guard_execution=execution)
    steps = out.guard.steps[0]
    assert len(steps) == len(whole)
    assert all(step.divergence is not None and step.divergence > 0 for step in steps)  # the branch ran and mattered


def test_it_is_stated_for_the_families_that_think():
    notes = {row["model_types"][0]: row["note"] for row in family_rows()}
    assert all(THINKS in notes[kind] for kind in ("qwen3_5", "glm4v"))
    assert THINKS not in notes["llava"]
