"""What can't be guarded raises, says why and what to do, and is never answered plainly."""

import copy

import pytest
import tiny
import torch
from asking import RUN, agla, ask
from transformers import LlavaForConditionalGeneration

from lvlm_guard import guard, methods
from lvlm_guard.errors import (
    GuardError,
    KnobError,
    LogitsError,
    MissingViewError,
    TextError,
    UnknownNameError,
    UnsupportedCallError,
    UnsupportedModelError,
    WeightsError,
)


def test_inputs_of_an_unguarded_processor_raise():
    model, processor = tiny.make("llava")
    plain = processor(images=tiny.picture(1), text=tiny.prompt(processor, "What?"), return_tensors="pt")
    guard(model, processor, agla())
    with pytest.raises(MissingViewError, match=r"guard\(model, processor\).*guard=False"):
        model.generate(**plain.to(torch.float64), **RUN)


def test_views_of_other_inputs_raise(pair):
    model, _ = pair
    one, two = ask(pair, ("What?", 1)), ask(pair, ("What?", 1), ("Who?", 2))
    with pytest.raises(MissingViewError, match="belong to different inputs"):
        model.generate(**{**two, "guard_views": one["guard_views"]}, **RUN)


def test_vcd_needs_no_pictures_only_pixels():
    model, processor = tiny.make("llava", scale=5.0)
    plain = processor(images=tiny.picture(1), text=tiny.prompt(processor, "What?"), return_tensors="pt")
    guard(model, processor, "vcd", alpha=2.0)
    out = model.generate(**plain.to(torch.float64), **RUN, return_dict_in_generate=True)
    assert out.guard.masks == 1


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ({"inputs_embeds": torch.zeros(1, 3, 64)}, "inputs_embeds"),
        ({"pixel_values_videos": torch.zeros(1)}, "Videos"),
        ({"mm_encoder_outputs": {"image": None}}, "pixel_values"),
        ({"cache_implementation": "paged"}, "continuous batching"),
        ({"guidance_scale": 1.5}, "guidance_scale calls the model"),
    ],
)
def test_calls_that_can_not_be_guarded_raise(pair, extra, match):
    model, _ = pair
    with pytest.raises(UnsupportedCallError, match=match):
        model.generate(**ask(pair, ("What?", 1)), **RUN, **extra)


def test_continuous_batching_raises(pair):
    with pytest.raises(UnsupportedCallError, match="Continuous batching"):
        pair[0].generate_batch([[1, 2]])


def test_a_prompt_without_tokens_raises(pair):
    with pytest.raises(UnsupportedCallError, match="input_ids"):
        pair[0].generate(max_new_tokens=2)


def test_a_picture_without_a_question_raises(pair):
    model, _ = pair
    with pytest.raises(TextError, match="guard_text"):
        model.generate(**ask(pair, ("", 1)), **RUN)
    stated = ask(pair, ("", 1), guard_text="Is there a dog?")
    assert model.generate(**stated, **RUN).shape[0] == 1


@pytest.mark.parametrize("bad", ["agla2", "Vcd", ""])
def test_an_unknown_method_names_the_known_ones(bad):
    with pytest.raises(UnknownNameError, match=f"Known: {', '.join(methods.REGISTRY.names())}"):
        guard(*tiny.make("llava"), bad)


@pytest.mark.parametrize(
    ("knobs", "match"),
    [
        ({"alpha": -1}, "alpha"), ({"alpha": float("nan")}, "alpha"), ({"beta": 1.5}, "beta"), ({"beta": -0.1}, "beta"),
        ({"alfa": 1}, "Did you mean 'alpha'"), ({"mode": "official"}, "The method 'agla-official' is that"),
        ({"frame": "round"}, "squashed"),
    ],
)  # fmt: skip
def test_knobs_out_of_range_raise(knobs, match):
    with pytest.raises(KnobError, match=match):
        guard(*tiny.make("llava"), "agla", **knobs)


def test_what_is_no_method_raises(pair):
    model, _ = pair
    inputs = ask(pair, ("What?", 1))
    for bad in (3, object(), dict):
        with pytest.raises(GuardError):
            model.generate(**inputs, guard=bad, **RUN)
    with pytest.raises(KnobError, match="execution"):
        model.generate(**inputs, guard_execution="fast", **RUN)


def test_missing_weights_are_said_before_the_first_token():
    pair = guard(*tiny.make("llava"), "agla")
    inputs = ask(pair, ("What?", 1))
    with pytest.raises(WeightsError, match="Salesforce/blip-itm-large-coco"):
        pair[0].generate(**inputs, **RUN)
    own = ask(pair, ("What?", 1), guard_images=tiny.picture(2))
    assert pair[0].generate(**own, **RUN).shape[0] == 1  # a view of one's own needs no matcher


def test_nan_logits_raise(pair):
    model, _ = pair
    inputs = ask(pair, ("What?", 1))
    model.lm_head.weight[7] = float("nan")
    with pytest.raises(LogitsError, match="NaN"):
        model.generate(**inputs, **RUN)


def test_families_that_do_not_fit_raise():
    llava, llava_processor = tiny.make("llava")
    _, qwen_processor = tiny.make("qwen2_5_vl")
    with pytest.raises(UnsupportedModelError, match="Qwen2_5_VLProcessor"):
        guard(llava, qwen_processor)
    with pytest.raises(UnsupportedModelError, match="the model has no image tower"):
        guard(llava.model.language_model, llava_processor)
    shifted = copy.deepcopy(llava)
    shifted.config.image_token_id = 9
    with pytest.raises(UnsupportedModelError, match="different checkpoints"):
        guard(shifted, llava_processor)
    assert type(llava) is LlavaForConditionalGeneration


def test_an_encoder_decoder_raises():
    from transformers import Florence2Config, Florence2ForConditionalGeneration

    small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 64}  # fmt: skip
    eyes = {"embed_dim": [8], "num_heads": [1], "num_groups": [1], "depths": [1], "window_size": 4,
            "projection_dim": 16, "patch_size": [7],
            "patch_stride": [4], "patch_padding": [3], "patch_prenorm": [False]}  # fmt: skip
    model = Florence2ForConditionalGeneration(Florence2Config(text_config=small, vision_config=eyes))
    with pytest.raises(UnsupportedModelError, match=r"encoder-decoder|florence2"):
        guard(model, tiny.make("llava")[1])
