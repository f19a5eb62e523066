"""Models and processors that are amiss together are refused, in words that say what was found."""

import functools
from types import SimpleNamespace

import any_families
import pytest
import tiny
import torch
from family_asking import RUN, agla, inputs_of

from lvlm_guard import guard
from lvlm_guard.errors import ImageError, TextError, UnsupportedCallError, UnsupportedModelError
from lvlm_guard.families.family import Family


def test_a_configuration_that_names_another_image_token_is_refused():
    model, processor = any_families.make("internvl")
    model.config.image_token_id = 77
    with pytest.raises(UnsupportedModelError, match=r"at token 77, which the processor does not write.*Load both from"):
        guard(model, processor, agla())


def test_a_processor_that_counts_other_image_tokens_than_the_model_makes_is_refused_or_fails_aloud():
    model, processor = any_families.make("internvl")
    processor.image_seq_length = 9  # the model makes 4 of a tile
    with pytest.raises(UnsupportedModelError, match=r"plain generate\(\) fails on a batch of pictures"):
        guard(model, processor, agla(), check="always")
    guard(model, processor, agla())  # trusts the table of model types
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]}], add_generation_prompt=True
    )
    with pytest.raises(ValueError, match="do not match"):
        model.generate(**processor(images=tiny.picture(1), text=text, return_tensors="pt"), **RUN)


def test_a_processor_of_another_class_is_tried_though_the_table_knows_the_model():
    model, processor = any_families.make("internvl")

    class Renamed(type(processor)):
        pass

    processor.__class__ = Renamed
    processor.image_seq_length = 9
    with pytest.raises(UnsupportedModelError, match=r"plain generate\(\) fails"):
        guard(model, processor, agla())


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for m in messages %}<|im_start|>user\n<IMG_CONTEXT>\nHello.<|im_end|>\n{% endfor %}",
         r"the question is not known. Give guard_text="),
        ("{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}", "does not read messages in parts"),
    ],
    ids=["no text", "text alone"],
)  # fmt: skip
def test_a_template_that_does_not_write_the_question_asks_for_it(template, told):
    model, processor = guard(*any_families.make("internvl"), agla())
    processor.chat_template = template
    prompt = "<IMG_CONTEXT>\nIs there a dog?"
    made = processor(images=tiny.picture(1), text=prompt, return_tensors="pt")
    with pytest.raises(TextError, match=told):
        model.generate(**made, **RUN)
    stated = processor(images=tiny.picture(1), text=prompt, guard_text="a dog", return_tensors="pt")
    assert model.generate(**stated, **RUN, return_dict_in_generate=True).guard.local_forwards


def test_a_template_that_writes_no_picture_is_refused():
    model, processor = any_families.make("internvl")
    processor.chat_template = "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
    # its processor refuses the picture, or, on older releases, leaves it out without a word
    with pytest.raises(UnsupportedModelError, match=r"can't process a picture|which the processor does not write"):
        guard(model, processor, agla())


def talkative(processor):
    """A processor that writes into the prompt how bright its picture is."""

    class Talkative(type(processor)):
        def __call__(self, images=None, text=None, **kwargs):
            bright = float(torch.tensor(list(tiny_mean(images))).mean())
            texts = [text] if isinstance(text, str) else text
            return super().__call__(images=images, text=[f"{one}Light: {bright:.4f}." for one in texts], **kwargs)

    processor.__class__ = Talkative
    return processor


def tiny_mean(images):
    for image in images if isinstance(images, list) else [images]:
        yield from tiny_mean(image) if isinstance(image, list) else [sum(image.resize((1, 1)).getpixel((0, 0))) / 3]


def test_a_processor_that_changes_the_text_with_the_picture_is_refused():
    model, processor = any_families.make("internvl")
    with pytest.raises(UnsupportedModelError, match="lays the second view out otherwise"):
        guard(model, talkative(processor), agla())
    model, processor = guard(*(model, processor), agla(), check="never")
    made = processor(images=tiny.picture(1), text="<IMG_CONTEXT>\nIs there a dog?", return_tensors="pt")
    with pytest.raises(UnsupportedCallError, match="lays the second view out otherwise"):
        model.generate(**made, **RUN)


def test_a_model_whose_self_check_fails_is_refused_with_what_was_found():
    model, processor = any_families.make("internvl")
    plain = type(model)

    class Counting(plain):
        """Its logits depend on how often it was called, which no second branch can get right."""

        calls = 0

        @functools.wraps(plain.forward)  # generate() reads its signature
        def forward(self, *args, **kwargs):
            Counting.calls += 1
            out = super().forward(*args, **kwargs)
            out.logits = out.logits.roll(Counting.calls, -1)
            return out

    model.__class__ = Counting
    model.config.hidden_act = "counting"  # no proof is kept of such a configuration
    with pytest.raises(UnsupportedModelError, match=r"are off by .* of their spread, where the other picture moves"):
        guard(model, processor, agla(), check="always")
    assert type(model) is Counting
    assert not hasattr(model, "_lvlm_guard")


def test_a_picture_that_the_processor_can_not_read_names_its_size():
    _, processor = guard(*tiny.make("qwen2_5_vl"), agla())
    with pytest.raises(ImageError, match="pictures of 4000x1 pixels"):
        processor(images=tiny.picture(1, 4000, 1), text=tiny.prompt(processor, "What?"), return_tensors="pt")


def test_a_model_that_does_not_look_is_refused():
    model, processor = any_families.make("internvl")
    for weight in model.model.multi_modal_projector.parameters():
        weight.zero_()
    with pytest.raises(UnsupportedModelError, match="nothing to guard"):
        guard(model, processor, agla(), check="always")


def test_a_processor_without_pictures_is_refused():
    model, processor = any_families.make("internvl")
    with pytest.raises(UnsupportedModelError, match="the processor reads no pictures"):
        guard(model, processor.tokenizer, agla())


def test_a_second_view_of_another_layout_is_refused():
    pair = guard(*any_families.make("qwen3_vl"), agla())
    inputs = inputs_of(pair, guard_images=[tiny.picture(1, 48, 96), tiny.picture(2, 56, 56)])
    with pytest.raises(UnsupportedCallError, match="lays the second view out otherwise"):
        pair[0].generate(**inputs, **RUN, guard=agla(beta=0.0))


def test_a_processor_whose_image_token_is_none_is_asked_the_question_alone():
    bare = SimpleNamespace(image_token=None, chat_template=None)
    assert Family().asked(bare, "Is it?", 1) == "Is it?"
