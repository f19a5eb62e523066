"""transformers.pipeline over a guarded pair, and over a model that it loaded by itself."""

import pytest
from PIL import Image
from transformers import pipeline

from lvlm_guard import guard
from lvlm_guard.embedded import MODEL
from lvlm_guard.embedded.catalog import CLASSES
from lvlm_guard.embedded.questions import pope_set
from lvlm_guard.embedded.text import question


@pytest.fixture(scope="module")
def talks():
    scenes, asked = pope_set("val", 16)
    return [
        [{"role": "user", "content": [{"type": "image", "image": Image.fromarray(scenes.image[item.scene])},
                                      {"type": "text", "text": question(CLASSES[item.asked])}]}]
        for item in asked
        if item.assumed and item.mode == "adversarial"
    ]  # fmt: skip


def answers(pipe, talks, **how):
    return [out[0]["generated_text"] for out in pipe(text=talks, max_new_tokens=6, return_full_text=False, **how)]


def test_a_pipeline_that_loaded_its_own_model_is_guarded_in_place_and_plain_where_asked(talks):
    pipe = pipeline("image-text-to-text", model=str(MODEL))
    before = answers(pipe, talks)
    model, processor = guard(pipe.model, pipe.processor)
    guarded = answers(pipe, talks)
    assert guarded != before
    assert answers(pipe, talks, generate_kwargs={"guard": False}) == before
    direct = []
    for talk in talks:
        inputs = processor.apply_chat_template(
            talk, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        tokens = model.generate(**inputs, max_new_tokens=6)
        direct.append(processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    assert [text.strip() for text in guarded] == [text.strip() for text in direct]
