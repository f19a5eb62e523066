"""A conversation goes on from the cache of its last turn, with the tokens that reading it anew gives."""

import copy

import pytest
import tiny
import torch
from asking import RUN, agla, next_turn

from lvlm_guard import guard, methods
from lvlm_guard.engine.rows import CACHE
from lvlm_guard.errors import MissingViewError, UnsupportedCallError

EXECUTIONS = ["lazy", "batched", "auto"]
CACHED = ("llava", "llava_next", "qwen2_5_vl")  # InstructBLIP reads the picture at every call


def pair_of(family, seed):
    return guard(*tiny.make(family, scale=5.0, seed=seed), agla(beta=0.1))


def inputs_of(processor, seed, questions=("What?",)):
    pictures = [tiny.picture(seed + i, 60, 40) for i in range(len(questions))]
    prompts = [tiny.prompt(processor, question) for question in questions]
    return processor(images=pictures, text=prompts, padding=True, return_tensors="pt").to(torch.float64)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("family", CACHED)
def test_a_later_turn_from_the_cache_gives_the_tokens_of_reading_it_anew(family, seed, execution):
    model, processor = pair_of(family, seed)
    inputs = inputs_of(processor, seed + 1)
    run = {**RUN, "return_dict_in_generate": True, "eos_token_id": None}
    for extra in ({}, {"num_beams": 2}, {"guard": methods.VCD(beta=0.3)}):
        out = model.generate(**inputs, **run, guard_execution=execution)
        turn, cached = next_turn(inputs, out.sequences)
        fresh = model.generate(**turn, **{**run, "use_cache": False}, **extra, guard_execution="lazy")
        if "num_beams" in extra:
            out.past_key_values.batch_repeat_interleave(2)
        model.generate(**inputs, **RUN)  # Qwen2.5-VL notes in itself how far the last call's text is shifted
        again = model.generate(
            **cached, **run, **extra, guard_execution=execution, **{CACHE: copy.deepcopy(out.past_key_values)}
        )
        assert torch.equal(again.sequences, fresh.sequences)
        assert again.guard.guarded
        assert again.guard.execution == "lazy"
        assert again.guard.local_forwards > 0
        assert not torch.equal(again.sequences, model.generate(**turn, **run, guard=False).sequences)


@pytest.mark.parametrize("family", CACHED)
def test_a_branch_leaves_the_positions_that_a_third_turn_goes_on_from(family):
    model, processor = pair_of(family, 0)
    inputs = inputs_of(processor, 1)
    run = {**RUN, "return_dict_in_generate": True, "eos_token_id": None}
    out = model.generate(**inputs, **run)
    for _ in range(3):
        turn, cached = next_turn(inputs, out.sequences)
        fresh = model.generate(**turn, **{**run, "use_cache": False}, guard=False)
        model.generate(**inputs, **RUN, guard=False)
        model.generate(**cached, **run, **{CACHE: copy.deepcopy(out.past_key_values)})
        plain = model.generate(**cached, **run, **{CACHE: out.past_key_values}, guard=False)
        assert torch.equal(plain.sequences, fresh.sequences)
        out = plain


@pytest.mark.parametrize("family", CACHED)
def test_a_batch_goes_on_from_its_cache_also_where_few_rows_want_the_branch(family, monkeypatch):
    monkeypatch.setattr("lvlm_guard.engine.session.EARLY", 99)  # the mechanism holds at any token
    model, processor = pair_of(family, 1)
    questions = [f"What is number {i}?" + " Say more." * (i % 2) for i in range(6)]
    inputs = inputs_of(processor, 3, questions)
    run = {**RUN, "max_new_tokens": 3, "return_dict_in_generate": True, "eos_token_id": None}
    few = 0
    for beta in (0.1, 0.6, 0.8, 0.9, 0.95):
        method = agla(beta=beta)
        out = model.generate(**inputs, **run, guard=method)
        turn, cached = next_turn(inputs, out.sequences)
        fresh = model.generate(**turn, **run, guard=method, guard_execution="batched")
        model.generate(**inputs, **RUN, guard=False)
        again = model.generate(**cached, **run, guard=method, **{CACHE: out.past_key_values})
        assert torch.equal(again.sequences, fresh.sequences)
        few += 0 < again.guard.masks < 6
    assert few or family != "qwen2_5_vl", "in no run did few requests want the branch"


@pytest.mark.parametrize("family", CACHED)
def test_a_batch_of_prompts_of_one_length_goes_on_from_its_cache(family):
    model, processor = pair_of(family, 1)
    inputs = inputs_of(processor, 3, ["What is this?", "What is that?"])
    assert inputs["attention_mask"].all()  # nothing is padded, so that transformers may drop the mask
    run = {**RUN, "return_dict_in_generate": True, "eos_token_id": None}
    out = model.generate(**inputs, **run)
    turn, cached = next_turn(inputs, out.sequences)
    fresh = model.generate(**turn, **{**run, "use_cache": False}, guard_execution="lazy")
    again = model.generate(**cached, **run, **{CACHE: out.past_key_values})
    assert torch.equal(again.sequences, fresh.sequences)
    assert again.guard.local_forwards > 0


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_later_turn_without_its_pictures_or_its_whole_text_raises(family):
    model, processor = pair_of(family, 0)
    inputs = inputs_of(processor, 1)
    out = model.generate(**inputs, **RUN, return_dict_in_generate=True, eos_token_id=None)
    _, cached = next_turn(inputs, out.sequences)
    cache = {CACHE: out.past_key_values}
    with pytest.raises((MissingViewError, UnsupportedCallError), match=r"guard_views again|at every call"):
        model.generate(**{key: value for key, value in cached.items() if key != "guard_views"}, **cache, **RUN)
    if family in CACHED:
        tail = {key: cached[key][:, -2:] for key in ("input_ids", "attention_mask")}
        with pytest.raises(UnsupportedCallError, match="whole sequence"):
            model.generate(**{**cached, **tail}, **cache, **RUN)
