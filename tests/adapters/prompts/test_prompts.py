"""What prompts do to a CLIP, against hand-written prompts and hand-made sequences."""

from __future__ import annotations

from enum import Enum

import pytest
import tiny_clip
import torch
from peft import get_peft_model
from transformers import BertConfig, BertModel

from lvlm_guard.adapters.prompts import (
    DualPromptConfig,
    PromptLayer,
    configuration,
    coop,
    dual_prompt,
    layers_of,
    maple,
    placeholders,
    vpt,
)
from lvlm_guard.adapters.prompts.config import add_member
from lvlm_guard.errors import KnobError, TextError, UnknownNameError, UnsupportedModelError

TOKENIZER = tiny_clip.tokenizer()
HAND = TOKENIZER(["a photo of a red dog", "a photo of a blue cat"], return_tensors="pt")["input_ids"]
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def text_of(model, ids=HAND):
    return model.get_text_features(input_ids=ids).pooler_output


def image_of(model):
    return model.get_image_features(pixel_values=PIXELS).pooler_output


def test_shallow_text_prompts_start_as_the_hand_written_prompt():
    plain = text_of(tiny_clip.clip())
    model = get_peft_model(tiny_clip.clip(), coop(TOKENIZER))
    assert torch.equal(text_of(model), plain)
    assert torch.equal(image_of(model), image_of(tiny_clip.clip()))


def test_deep_replaced_text_prompts_do_not_start_as_the_hand_written_prompt():
    model = get_peft_model(tiny_clip.clip(), coop(TOKENIZER, depth=2))
    assert not torch.allclose(text_of(model), text_of(tiny_clip.clip()), atol=1e-3)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_residual_text_prompts_start_as_the_hand_written_prompt_bit_for_bit_at_any_depth(depth, attention):
    config = coop(TOKENIZER, depth=depth, prompt_mode="residual")
    model = get_peft_model(tiny_clip.clip(attention=attention), config)
    assert torch.equal(text_of(model), text_of(tiny_clip.clip(attention=attention)))


def test_residual_vision_prompts_of_three_layers_start_as_those_of_one():
    torch.manual_seed(0)
    deep = get_peft_model(tiny_clip.clip(), vpt(depth=3, prompt_mode="residual"))
    shallow = get_peft_model(tiny_clip.clip(), vpt(depth=1))
    same = {name: value for name, value in deep.state_dict().items() if "layers.0.dual_prompt" in name}
    shallow.load_state_dict(same, strict=False)
    assert torch.equal(image_of(deep), image_of(shallow))


def test_vision_slots_stand_after_the_patches_and_flow_on_below_the_depth():
    model = get_peft_model(tiny_clip.clip(), vpt(depth=2, n_ctx=3))
    out = model.get_base_model().vision_model(pixel_values=PIXELS, output_hidden_states=True)
    assert out.last_hidden_state.shape == (2, 16 + 1 + 3, 32)
    assert sum(isinstance(module, PromptLayer) for module in model.modules()) == 2


def test_a_prompt_layer_equals_the_sequence_put_together_by_hand():
    model = get_peft_model(tiny_clip.clip(), vpt(depth=2, n_ctx=2))
    tower = tiny_clip.clip().vision_model
    one, two = (layer.dual_prompt_ctx["default"] for layer in model.modules() if isinstance(layer, PromptLayer))
    h = tower.pre_layrnorm(tower.embeddings(PIXELS))
    h = tower.encoder.layers[0](torch.cat([h, one.expand(2, -1, -1)], 1), None)
    h = tower.encoder.layers[1](torch.cat([h[:, :-2], two.expand(2, -1, -1)], 1), None)
    h = tower.encoder.layers[2](h, None)
    got = model.get_base_model().vision_model(pixel_values=PIXELS).last_hidden_state
    torch.testing.assert_close(got, h)


@pytest.mark.parametrize("rank", [0, 3])
def test_coupled_vision_prompts_are_the_text_prompts_through_the_coupling(rank):
    model = get_peft_model(tiny_clip.clip(), dual_prompt(TOKENIZER, depth=2, coupling_rank=rank))
    layers = [module for module in model.modules() if isinstance(module, PromptLayer)]
    assert {layer.side for layer in layers} == {"text", "vision"}
    for vision in (layer for layer in layers if layer.side == "vision"):
        text = next(layer for layer in layers if layer.side == "text" and layer.index == vision.index)
        f = vision.dual_prompt_w["default"]
        if rank:
            f = f @ vision.dual_prompt_u["default"]
        assert f.shape == (32, 24)
        expected = text.dual_prompt_ctx["default"] @ f.T + vision.dual_prompt_b["default"]
        torch.testing.assert_close(vision.prompts("default"), expected)
        assert "default" not in vision.dual_prompt_ctx


def test_a_loss_on_images_alone_trains_the_text_prompts_through_the_coupling():
    model = get_peft_model(tiny_clip.clip(), maple(TOKENIZER, depth=2))
    image_of(model)[:, 0].sum().backward()
    text = [p for name, p in model.named_parameters() if "text_model" in name and p.requires_grad]
    assert all(parameter.grad.abs().max() > 0 for parameter in text)


def test_parameter_counts_are_those_of_the_specification():
    def count(config):
        model = get_peft_model(tiny_clip.clip(), config)
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    assert count(coop(TOKENIZER)) == 4 * 24
    assert count(vpt(depth=3, n_ctx=5)) == 5 * 32 * 3
    assert count(maple(TOKENIZER, depth=3)) == (2 * 24 + 32 * 24 + 32) * 3
    assert count(dual_prompt(TOKENIZER, depth=3, coupling_rank=2)) == (4 * 24 + (32 + 24) * 2 + 32) * 3


def test_captions_without_the_placeholders_are_refused_before_their_words_are_overwritten():
    model = get_peft_model(tiny_clip.clip(), coop(TOKENIZER))
    with pytest.raises(TextError, match=r"has not the 4 placeholder tokens .* would overwrite its words"):
        text_of(model, TOKENIZER(["the red dog and the blue cat"], return_tensors="pt")["input_ids"])
    with pytest.raises(TextError, match="placeholder"):
        text_of(model, TOKENIZER(["dog"], return_tensors="pt")["input_ids"])
    with model.disable_adapter():
        text_of(model, TOKENIZER(["dog"], return_tensors="pt")["input_ids"])
    plain = model.unload()
    text_of(plain, TOKENIZER(["dog"], return_tensors="pt")["input_ids"])


def test_attention_maps_and_hidden_states_are_recorded_through_the_wrappers():
    model = get_peft_model(tiny_clip.clip(attention="eager"), vpt(depth=2, n_ctx=3))
    out = model.get_base_model().vision_model(pixel_values=PIXELS, output_attentions=True, output_hidden_states=True)
    assert [tuple(a.shape) for a in out.attentions] == [(2, 4, 20, 20)] * 3
    torch.testing.assert_close(out.attentions[1].sum(-1), torch.ones(2, 4, 20))


def test_depth_beyond_the_encoder_is_refused_with_the_number_of_its_layers():
    assert layers_of(tiny_clip.clip(layers=2), "text") == 2
    with pytest.raises(KnobError, match=r"depth is 9, but the text encoder of this CLIP has 3 layers"):
        get_peft_model(tiny_clip.clip(), maple(TOKENIZER))


def test_a_model_that_is_no_clip_is_refused():
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
    with pytest.raises(UnsupportedModelError, match="BertModel has no text_model"):
        get_peft_model(bert, coop(TOKENIZER))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sides": "txt"}, "Did you mean 'text'"),
        ({"depth": 0}, "depth is 0"),
        ({"n_ctx": 2.0}, "n_ctx is 2.0"),
        ({"coupling": "t2v", "sides": "text"}, "has not both"),
        ({"coupling": "none", "coupling_rank": 4}, "which is off"),
        ({"coupling_rank": -1}, "coupling_rank is -1"),
        ({"placeholder_ids": [1, 2]}, "2 ids for n_ctx=4"),
        ({"sides": "vision", "coupling": "none"}, "leave them out"),
        ({"prompt_mode": "residual", "init": "normal"}, "starts at zero"),
        ({"target_modules": "q_proj"}, "it follows from sides"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(KnobError, match=message):
        DualPromptConfig(**{"placeholder_ids": [1, 2, 3, 4], **options})


def test_an_unknown_configuration_names_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"Did you mean 'maple'.*coop, .*vpt, maple, independent, dual-prompt"):
        configuration("mapel", TOKENIZER)


def test_placeholders_repeat_the_words_and_refuse_words_that_the_tokenizer_does_not_know():
    a, photo, of = TOKENIZER("a photo of", add_special_tokens=False)["input_ids"]
    assert placeholders(TOKENIZER, 6) == [a, photo, of, a, a, photo]
    assert placeholders(TOKENIZER, 2) == [a, photo]
    with pytest.raises(KnobError, match="does not know all of the words 'an xylophone'"):
        placeholders(TOKENIZER, 4, "an xylophone")


def test_a_member_added_to_an_enum_is_found_by_name_value_and_listing_and_added_once():
    class Kind(str, Enum):  # noqa: UP042 - as PEFT's is
        LORA = "LORA"

    member = add_member(Kind, "OURS")
    assert add_member(Kind, "OURS") is member is Kind.OURS is Kind["OURS"] is Kind("OURS")
    assert [kind.value for kind in Kind] == ["LORA", "OURS"]
    assert "OURS" in list(Kind)
    assert {member: 1}["OURS"] == 1
    assert member in Kind
