"""Caches of any kind: stacked where their rows are plain tensors, left alone where not, returned as they came."""

import copy
import inspect

import pytest
import tiny
import torch
from asking import RUN, agla, ask, next_turn
from transformers import (
    CLIPImageProcessor,
    DynamicCache,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    StaticCache,
)
from transformers.cache_utils import DynamicLayer, QuantizedCache

from lvlm_guard import guard, unguard
from lvlm_guard.engine.rows import CACHE, stackable

EXECUTIONS = ["lazy", "batched", "auto"]
TWO = (("What?", 1), ("Who is there?", 2))


class OddLayer(DynamicLayer):
    """A layer that keeps its states in a way of its own, as quantised ones do."""

    def update(self, keys, values, *args, **kwargs):
        self.keys, self.values = getattr(self, "held", (self.keys, self.values))
        self.held = super().update(keys, values)
        self.keys = self.values = torch.tensor([], dtype=keys.dtype)
        return self.held

    def get_seq_length(self):
        return self.held[0].shape[-2] if hasattr(self, "held") else 0

    def reorder_cache(self, beam_idx):
        self.held = tuple(states.index_select(0, beam_idx) for states in self.held)


def odd_cache(model):
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    cache.layers = [OddLayer() for _ in cache.layers]
    return cache


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
def test_layers_that_keep_their_states_otherwise_are_not_stacked(family, execution):
    pair = guard(*tiny.make(family, scale=5.0), agla(beta=0.1))
    model, _ = pair
    inputs = ask(pair, *TWO)
    for beams in ({}, {"num_beams": 3}):
        expected = model.generate(**inputs, **RUN, **beams)
        out = model.generate(
            **inputs, **RUN, **beams, **{CACHE: odd_cache(model)}, guard_execution=execution,
            return_dict_in_generate=True,
        )  # fmt: skip
        assert torch.equal(out.sequences, expected)
        assert out.guard.execution == "lazy"
        assert any("can't be stacked" in note for note in out.guard.notes) == (execution == "batched")
        assert out.past_key_values.layers[0].held[0].shape[0] == len(inputs["input_ids"]) * beams.get("num_beams", 1)


@pytest.mark.skipif("nbits: int | None" not in str(inspect.signature(QuantizedCache.__init__)), reason="no fp8 cache")
@pytest.mark.parametrize("beams", [1, 3])
def test_a_quantised_cache_gives_the_same_tokens_in_every_execution(beams):
    pair = guard(*tiny.make("llava", scale=5.0, dtype=torch.float32), agla(beta=0.1))
    model, _ = pair
    inputs = ask(pair, *TWO).to(torch.float32)
    run = {**RUN, "num_beams": beams, "return_dict_in_generate": True}
    run |= {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    outs = [model.generate(**inputs, **run, guard_execution=execution) for execution in EXECUTIONS]
    assert all(torch.equal(out.sequences, outs[0].sequences) for out in outs)
    assert all(out.cache.layers[0]._quantized_keys[0].shape[0] == 2 * beams for out in outs)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
def test_a_static_cache_of_the_callers_own_comes_back_with_his_rows_and_goes_on(family, execution):
    pair = guard(*tiny.make(family, scale=5.0), agla(beta=0.1))
    model, _ = pair
    inputs = ask(pair, *TWO)
    run = {**RUN, "eos_token_id": None, "guard_execution": execution, "return_dict_in_generate": True}
    expected = model.generate(**inputs, **run)
    cache = StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=160)
    out = model.generate(**inputs, **run, **{CACHE: cache})
    assert torch.equal(out.sequences, expected.sequences)
    assert out.past_key_values is cache
    assert type(cache) is StaticCache
    assert out.guard.execution == ("batched" if execution == "batched" else "lazy")
    for layer in cache.layers:
        assert layer.batch_size == layer.keys.shape[0] == 2
        assert layer.keys.untyped_storage().nbytes() == layer.keys.numel() * layer.keys.element_size()

    turn, cached = next_turn(inputs, out.sequences)
    fresh = model.generate(**turn, **run)
    model.generate(**inputs, **run)
    again = model.generate(**cached, **run, **{CACHE: cache})
    assert torch.equal(again.sequences, fresh.sequences)
    cache.reset()
    once_more = model.generate(**inputs, **run, **{CACHE: cache})  # its rows are laid out for one branch now
    assert torch.equal(once_more.sequences, expected.sequences)
    assert once_more.guard.execution == "lazy"


def test_a_cache_that_is_offloaded_is_not_stacked_for_its_layers_are_elsewhere():
    config = tiny.make("llava")[0].config
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    assert stackable(cache, config)
    cache.offloading = True
    assert not stackable(cache, config)


def windowed(window, seed=0):
    """A LLaVA on a Mistral that looks back `window` tokens (BakLLaVA's shape), guarded."""
    torch.manual_seed(seed)
    t = tiny.tokenizer(tiny.SPECIALS, image_token="<image>")
    text = MistralConfig(**tiny._text(len(t)), sliding_window=window, head_dim=16)
    config = LlavaConfig(vision_config=tiny._clip(), text_config=text, image_token_index=4, image_seq_length=16)
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        images, t, chat_template=tiny.LLAVA_TEMPLATE, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    return guard(tiny._finish(model, 5.0, torch.float64), processor, agla(beta=0.3))


def drafts(model):
    """An assistant whose drafts are mostly right."""
    assistant = unguard(copy.deepcopy(model))
    for parameter in assistant.parameters():
        parameter.data *= 0.97
    return assistant


@pytest.mark.parametrize("window", [None, 60, 24])  # never full, full while it answers, full before
@pytest.mark.parametrize("mode", ["greedy", "beams", "prompt lookup", "assistant"])
def test_past_a_sliding_window_every_execution_gives_the_tokens_of_no_cache(mode, window):
    pair = windowed(window)
    model, _ = pair
    inputs = ask(pair, ("What? What? What?", 1))
    run = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None}
    if mode == "beams":
        run["num_beams"] = 3
    extra = {"prompt lookup": {"prompt_lookup_num_tokens": 3}, "assistant": {"assistant_model": drafts(model)}}
    try:
        model.generate(**inputs, **run, **extra.get(mode, {}), guard=False)
    except RuntimeError as error:
        pytest.skip(f"this release of transformers fails without the guard too: {error}")
    expected = model.generate(**inputs, **run, use_cache=False, guard_execution="batched")
    for execution in EXECUTIONS:
        got = model.generate(**inputs, **run, **extra.get(mode, {}), guard_execution=execution)
        assert torch.equal(got, expected), execution
    assert not torch.equal(expected, model.generate(**inputs, **run, guard=False))
