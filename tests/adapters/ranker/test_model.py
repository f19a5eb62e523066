"""`ClipRanker` on real CLIP classes with a ViT and with a ConvNeXt."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    ConvNextConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
)

from lvlm_guard.adapters.backbone import trunk_of
from lvlm_guard.adapters.ranker.model import ClipRanker, adapted
from lvlm_guard.errors import UnsupportedCallError, UnsupportedModelError

Make = Callable[..., ClipRanker]
Group = Callable[..., dict[str, Tensor]]


def bits(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def train(model: Any, inputs: dict[str, Tensor], steps: int = 3) -> None:
    model.train()
    learning = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        learning.zero_grad()
        model(**inputs).loss.backward()
        learning.step()


def test_building_a_ranker_leaves_the_clip_as_it_was(kind: str, make_clip: Callable[..., Any]) -> None:
    clip = make_clip(kind)
    before = bits(clip)
    after = ClipRanker(clip).clip.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_two_builds_with_one_seed_are_equal_and_two_seeds_are_not(kind: str, make_ranker: Make) -> None:
    one, other, third = (make_ranker(kind, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    assert not torch.equal(one["ranker.fusion.projection"], third["ranker.fusion.projection"])


def test_image_tokens_are_what_the_tower_was_pretrained_with(kind: str, make_ranker: Make, group: Group) -> None:
    """Pooled as the tower pools them, they give the tower's own feature."""
    model, pixels = make_ranker(kind), group()["pixel_values"]
    seen = model.clip.vision_model(pixel_values=pixels)
    tokens = model.image_tokens(pixels)
    assert tokens.shape == (5, 16, 40)
    assert model.trunk.grid(32, 32) == (4, 4)
    if kind == "convnext":
        torch.testing.assert_close(model.clip.vision_model.layernorm(tokens.mean(1)), seen.pooler_output)
    else:
        whole = torch.cat([seen.last_hidden_state[:, :1], tokens], 1)
        assert torch.equal(whole, seen.last_hidden_state)


def test_tokens_keep_the_places_of_a_picture_row_by_row(kind: str, make_ranker: Make) -> None:
    model = make_ranker(kind)
    plain = torch.zeros(1, 3, 32, 32)
    marked = plain.clone()
    marked[..., 8:16, 24:32] = 3.0  # row 1, column 3 of 4 x 4
    moved = (model.image_tokens(marked) - model.image_tokens(plain)).norm(dim=-1)
    assert int(moved.argmax()) == 1 * 4 + 3


def test_text_ends_with_its_end_token_also_where_padding_repeats_it(make_ranker: Make) -> None:
    model = make_ranker()
    ids = torch.tensor([[1, 4, 8, 3, 3, 3], [1, 4, 5, 6, 8, 3]])
    _, mask = model.text_tokens(ids)
    assert mask.tolist() == [[True] * 4 + [False] * 2, [True] * 6]
    states, same = model.text_tokens(ids, torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6]))
    assert torch.equal(mask, same)
    pooled = model.clip.text_model(input_ids=ids).pooler_output
    torch.testing.assert_close(states[torch.arange(2), mask.sum(1) - 1], pooled)


def test_the_end_token_of_old_configs_is_the_largest_id(make_clip: Callable[..., Any]) -> None:
    clip = make_clip()
    clip.config.text_config.eos_token_id = 2
    clip.text_model.eos_token_id = 2
    ids = torch.tensor([[1, 4, 8, 12, 12, 12]])  # CLIP's end token has the largest id, and pads
    states, mask = trunk_of(clip).text_tokens(ids)
    assert mask.tolist() == [[True] * 4 + [False] * 2]
    assert torch.equal(states[0, 3], clip.text_model(input_ids=ids).pooler_output[0])


def test_forward_from_cached_tokens_equals_forward_from_pictures(kind: str, make_ranker: Make, group: Group) -> None:
    model, inputs = make_ranker(kind).eval(), group()
    whole = model(**inputs)
    text, mask = model.text_tokens(inputs["input_ids"], inputs["attention_mask"])
    tokens = model.image_tokens(inputs["pixel_values"])
    cached = model(image_tokens=tokens, text_tokens=text, text_mask=mask, labels=inputs["labels"])
    assert torch.equal(whole.scores, cached.scores)
    assert torch.equal(whole.logits, cached.logits)
    assert torch.equal(whole.loss, cached.loss)
    halved = model(image_tokens=tokens.bfloat16(), text_tokens=text, text_mask=mask)
    torch.testing.assert_close(halved.scores, whole.scores, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("trunk", ["frozen", "tuned"])
def test_no_weight_of_the_clip_changes_by_a_bit(kind: str, trunk: str, make_ranker: Make, group: Group) -> None:
    """The release's "locked" text tower keeps training its embeddings, positions, final norm and projection."""
    model = make_ranker(kind)
    before = bits(model.clip)
    learnt = adapted(model, trunk)
    first = bits(learnt)
    train(learnt, group())
    after = {name.replace(".base_layer", ""): weight for name, weight in model.clip.state_dict().items()}
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    now = learnt.state_dict()
    changed = {name for name, weight in first.items() if not torch.equal(weight, now[name])}
    assert changed == {name for name, p in learnt.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("trunk", ["frozen", "tuned"])
def test_every_weight_that_asks_for_a_gradient_gets_one(kind: str, trunk: str, make_ranker: Make, group: Group) -> None:
    learnt = adapted(make_ranker(kind), trunk)
    towers = (learnt.clip.vision_model, learnt.clip.text_model)
    learns = any(weight.requires_grad for tower in towers for weight in tower.parameters())
    assert learns == (trunk == "tuned")
    train(learnt, group(), steps=1)  # a LoRA's A has no gradient while its B is 0
    learnt.zero_grad()
    learnt(**group()).loss.backward()
    asked = {name: p for name, p in learnt.named_parameters() if p.requires_grad}
    assert [name for name, p in asked.items() if p.grad is None or not p.grad.norm() > 1e-9] == []
    assert any(".lora_A." in name for name in asked) == (trunk == "tuned")


def test_the_clip_stays_in_evaluation_mode_while_the_ranker_trains(kind: str, make_ranker: Make) -> None:
    learnt = adapted(make_ranker(kind), "tuned").train()
    assert learnt.ranker.training
    assert not any(type(m).__name__.startswith(("Dropout", "LayerNorm")) and m.training for m in learnt.clip.modules())
    assert not learnt.clip.training


def test_checkpointed_layers_give_the_same_gradients(make_clip: Callable[..., Any], small: Any, group: Group) -> None:
    clip = make_clip("vit", attention_dropout=0.5)  # of no effect: the tower stays in evaluation mode
    torch.manual_seed(0)
    model = ClipRanker(clip, small)
    gradients: list[dict[str, Tensor]] = []
    runs: list[list[int]] = []
    for checkpointed in (False, True):
        torch.manual_seed(4)
        learnt = adapted(copy.deepcopy(model), "tuned")
        base: Any = learnt.get_base_model()
        if checkpointed:
            enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
            enable()
        learnt.train()
        runs.append(calls := [])
        layer = base.clip.vision_model.encoder.layers[0].mlp
        layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(5)
        learnt(**group()).loss.backward()
        gradients.append({name: p.grad for name, p in learnt.named_parameters() if p.grad is not None})
    assert [len(calls) for calls in runs] == [1, 2]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


def test_bfloat16_autocast_trains_with_a_float32_loss(kind: str, make_ranker: Make, group: Group) -> None:
    learnt, inputs = adapted(make_ranker(kind), "tuned").eval(), group()
    exact = learnt(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        said = learnt(**inputs)
    assert said.loss.dtype == said.scores.dtype == said.logits.dtype == torch.float32
    assert (said.logits + said.logits.T).abs().max() == 0
    torch.testing.assert_close(said.scores, exact.scores, rtol=0.1, atol=0.1)
    said.loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in learnt.parameters() if p.grad is not None)


def test_a_model_in_bfloat16_answers(kind: str, make_clip: Callable[..., Any], small: Any, group: Group) -> None:
    model = ClipRanker(make_clip(kind).bfloat16(), small).eval()
    said = model(**group())
    assert said.scores.dtype == said.logits.dtype == torch.float32
    assert (said.logits + said.logits.T).abs().max() == 0


def test_similarity_is_that_of_the_clip(make_ranker: Make, make_clip: Callable[..., Any], group: Group) -> None:
    inputs = {name: tensor for name, tensor in group().items() if name != "labels"}
    clip = make_clip()
    expected = clip(**inputs).logits_per_image / clip.logit_scale.exp()
    torch.testing.assert_close(make_ranker().similarity(**inputs), expected)


def test_what_does_not_go_together_is_refused(make_ranker: Make, group: Group) -> None:
    model, inputs = make_ranker(), group()
    tokens = model.image_tokens(inputs["pixel_values"])
    with pytest.raises(UnsupportedCallError, match="pictures once"):
        model(**inputs, image_tokens=tokens)
    with pytest.raises(UnsupportedCallError, match="text once"):
        model(pixel_values=inputs["pixel_values"])
    with pytest.raises(UnsupportedCallError, match="loss compares pairs"):
        model(**inputs, pairs=False)
    with pytest.raises(UnsupportedCallError, match="saved as a PEFT adapter"):
        model.save_pretrained("anywhere")


def test_towers_that_can_not_be_read_are_refused_by_name(make_clip: Callable[..., Any]) -> None:
    text = make_clip().config.text_config.to_dict()
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    vision = ViTConfig(image_size=32, patch_size=8, **sizes).to_dict()
    config = VisionTextDualEncoderConfig(text_config=CLIPTextConfig(**text).to_dict(), vision_config=vision)
    with pytest.raises(UnsupportedModelError, match=r"VisionTextDualEncoderModel has the image tower 'vit'"):
        ClipRanker(VisionTextDualEncoderModel(config))
    with pytest.raises(UnsupportedModelError, match="stands on a CLIP, but Linear"):
        ClipRanker(torch.nn.Linear(1, 1))  # type: ignore[arg-type]


def test_a_four_stage_convnext_halves_three_times(make_clip: Callable[..., Any]) -> None:
    text = make_clip().config.text_config.to_dict()
    seeing = ConvNextConfig(hidden_sizes=[4, 8, 8, 16], depths=[1, 1, 1, 1], image_size=64).to_dict()
    config = VisionTextDualEncoderConfig(
        text_config=CLIPTextConfig(**text).to_dict(), vision_config=seeing | {"hidden_size": 16}, projection_dim=8
    )
    trunk = trunk_of(VisionTextDualEncoderModel(config).eval())
    assert trunk.grid(64, 96) == (2, 3)
    assert trunk.image_tokens(torch.randn(2, 3, 64, 96)).shape == (2, 6, 16)
