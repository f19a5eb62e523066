"""The contract of a guarded model: the same object, its traces and outputs, and nothing left behind."""

import copy
import json
import threading

import pytest
import tiny
import torch
from asking import RUN, agla, ask
from matchers import Brightness
from transformers import (
    AutoModelForImageTextToText,
    DynamicCache,
    LlavaForConditionalGeneration,
    StoppingCriteria,
    TextIteratorStreamer,
)

from lvlm_guard import guard, methods, unguard
from lvlm_guard.errors import GuardError, MissingViewError, UnsupportedCallError


def test_the_objects_are_the_same_and_instances_of_their_classes():
    model, processor = tiny.make("llava")
    kind, other = type(model), type(processor)
    guarded, guarded_processor = guard(model, processor, "vcd")
    assert guarded is model
    assert guarded_processor is processor
    assert isinstance(model, LlavaForConditionalGeneration)
    assert isinstance(processor, other)
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    unguard(model)
    unguard(processor)
    assert type(model) is kind
    assert type(processor) is other
    assert not [name for name in {**vars(model), **vars(processor)} if "guard" in name]


def test_without_a_name_it_is_the_method_that_the_docs_table_chooses_and_agla_by_name_has_the_papers_settings():
    model, processor = guard(*tiny.make("llava"))
    assert model._lvlm_guard.method == methods.Vote()
    guard(model, processor, "agla")
    method = model._lvlm_guard.method
    assert (method.name, method.alpha, method.beta) == ("agla", 2.0, 0.5)


def test_guarding_twice_keeps_the_last_guard(pair):
    model, processor = pair
    guard(model, processor, "vcd")
    assert model._lvlm_guard.method.name == "vcd"
    unguard(model)
    assert type(model) is LlavaForConditionalGeneration


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_guard_that_fails_leaves_the_last_one_in_place(family):
    pair = guard(*tiny.make(family, scale=5.0), agla(beta=0.1))
    model, processor = pair
    kinds, inputs = (type(model), type(processor)), ask(pair, ("What?", 1))
    before = model.generate(**inputs, **RUN)
    other = tiny.make("llava" if family == "qwen2_5_vl" else "qwen2_5_vl")[1]
    token = model.config.image_token_id
    for bad in (
        lambda: guard(model, other),
        lambda: guard(model, processor, "agla2"),
        lambda: guard(model, processor, alpha=-1.0),
        lambda: guard(model, processor, execution="fast"),
        lambda: guard(model, object()),
        lambda: (setattr(model.config, "image_token_id", 9), guard(model, processor)),
    ):
        with pytest.raises(GuardError):
            bad()
        model.config.image_token_id = token
        assert (type(model), type(processor)) == kinds
        assert torch.equal(model.generate(**ask(pair, ("What?", 1)), **RUN), before)
    assert not torch.equal(model.generate(**inputs, **RUN, guard=False), before)


def test_a_saved_guarded_model_is_a_plain_one(pair, tmp_path):
    model, processor = pair
    inputs = ask(pair, ("Is there a dog?", 1))
    plain = model.generate(**inputs, guard=False, **RUN)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    written = (tmp_path / "config.json").read_text() + (tmp_path / "processor_config.json").read_text()
    assert "guard" not in written.lower()
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlavaForConditionalGeneration"]
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float64).eval()
    tensors = {key: value for key, value in inputs.items() if key != "guard_views"}
    assert torch.equal(loaded.generate(**tensors, **RUN), plain)


def test_text_only_calls_are_plain_and_say_so(pair):
    model, _ = pair
    inputs = ask(pair, ("How are you?",))
    out = model.generate(**inputs, **RUN, return_dict_in_generate=True)
    assert torch.equal(out.sequences, model.generate(**inputs, guard=False, **RUN))
    assert out.guard.guarded is False
    assert "No picture" in out.guard.notes[0]
    assert out.guard.local_forwards == out.guard.masks == 0


@pytest.mark.parametrize("execution", ["lazy", "batched", "auto"])
def test_in_a_mixed_batch_rows_without_a_picture_stay_plain(pair, execution):
    model, _ = pair
    mixed = ask(pair, ("How are you?",), ("What is this?", 3))
    out = model.generate(**mixed, **RUN, guard_execution=execution, return_dict_in_generate=True)
    plain = model.generate(**mixed, guard=False, **RUN)
    assert torch.equal(out.sequences[0], plain[0])
    assert not torch.equal(out.sequences[1], plain[1])
    assert "Some prompts hold no picture" in out.guard.notes[0]


@pytest.mark.parametrize("execution", ["lazy", "batched", "auto"])
def test_each_of_several_pictures_gets_its_own_mask(pair, execution):
    model, _ = pair
    two = ask(pair, ("What differs?", 1, 2), ("What is this?", 3))
    out = model.generate(**two, **RUN, guard_execution=execution, return_dict_in_generate=True)
    views = out.guard.views
    assert out.guard.masks == len(views) == len(two["guard_views"].views()) == 3
    assert [match["image"] for match in out.guard.matches] == [0, 1, 2]
    assert views[0].local.tobytes() != views[1].local.tobytes()
    alone = ask(pair, ("What differs?", 1, 2))
    one = model.generate(**alone, **RUN, guard_execution=execution)
    start, length = two["input_ids"].shape[1], one.shape[1] - alone["input_ids"].shape[1]
    assert torch.equal(out.sequences[0, start : start + length], one[0, alone["input_ids"].shape[1] :])


def written(inputs):
    return [dict(vars(view)) for view in inputs["guard_views"].views()]


def test_a_call_writes_nothing_on_its_inputs_and_each_call_has_views_of_its_own(pair):
    model, _ = pair
    inputs = ask(pair, ("What differs?", 1, 2), ("What is this?", 3))
    before = written(inputs)
    options = {**RUN, "return_dict_in_generate": True, "guard_execution": "batched"}
    square, wide = (
        model.generate(**inputs, **options, guard=methods.AGLA(beta=0.0, matcher=Brightness(side))).guard
        for side in (16, 24)
    )
    assert written(inputs) == before
    assert [view.local.size for view in square.views.values()] == [(16, 16)] * 3
    assert [view.match.keep.shape for view in wide.views.values()] == [(24, 24)] * 3
    assert "views" not in wide.to_dict()


def test_inputs_that_a_list_puts_together_keep_their_own_places(pair):
    model, _ = pair
    parts = [ask(pair, (question, seed)) for question, seed in (("What?", 1), ("Where?", 2))]
    views = [part["guard_views"] for part in parts]
    both = ask(pair, ("What?", 1), ("Where?", 2))
    together = model.generate(**{**both, "guard_views": views}, **RUN, return_dict_in_generate=True)
    assert sorted(together.guard.views) == [0, 1]
    assert [view.index for part in views for view in part.views()] == [0, 0]


def test_second_views_of_the_callers_own_are_what_the_branch_sees_and_the_trace_tells(pair):
    model, processor = pair
    given = tiny.picture(9)
    made = processor(images=tiny.picture(1), guard_images=given, text=tiny.prompt(processor, "?"), return_tensors="pt")
    out = model.generate(**made.to(torch.float64), **RUN, guard_execution="batched", return_dict_in_generate=True)
    assert out.guard.view(0).local.tobytes() == made["guard_views"].views()[0].local.tobytes() == given.tobytes()
    assert out.guard.view(0).match is None


def test_no_mask_is_made_before_a_step_needs_it(pair):
    model, _ = pair
    matcher = Brightness()
    inputs = ask(pair, ("What?", 1))
    model.generate(**inputs, **RUN, guard=methods.AGLA(beta=1.0, matcher=matcher), guard_execution="lazy")
    assert matcher.calls == 0
    model.generate(**inputs, **RUN, guard=methods.AGLA(beta=0.01, matcher=matcher), guard_execution="lazy")
    assert matcher.calls == 1


def test_trace_is_plain_data_and_says_what_was_overruled(pair):
    model, _ = pair
    inputs = ask(pair, ("What?", 1), ("Who is there?", 2))
    out = model.generate(**inputs, max_new_tokens=30, do_sample=False, return_dict_in_generate=True)
    trace = json.loads(json.dumps(out.guard.to_dict()))
    assert trace["method"] == "agla"
    assert trace["knobs"]["matcher"] == "brightness-32"
    prompt = inputs["input_ids"].shape[1]
    for row, steps in enumerate(trace["steps"]):
        tokens = [step["token"] for step in steps]
        assert tokens == out.sequences[row, prompt : prompt + len(tokens)].tolist()
        assert all(step["log_prob"]["global"] <= 0 for step in steps)
    overruled = [s for steps in out.guard.steps for s in steps if s.overruled is not None]
    assert overruled
    assert all(not step.decided and step.overruled != step.token for step in overruled)
    assert any("local" in step.log_prob and step.log_prob["local"] is not None for step in overruled)


def test_traces_follow_beams_and_several_samples(pair):
    model, _ = pair
    inputs = ask(pair, ("What?", 1), ("Who is there?", 2))
    for extra in ({"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "num_return_sequences": 3}):
        for execution in ("lazy", "batched", "auto"):
            out = model.generate(**inputs, **{**RUN, **extra}, guard_execution=execution, return_dict_in_generate=True)
            assert len(out.guard.steps) == len(out.sequences)
            for answer, row in zip(out.guard.steps, out.sequences, strict=True):
                tokens = row[inputs["input_ids"].shape[1] :].tolist()
                assert [step.token for step in answer] == tokens[: len(answer)]
                assert len(answer) == (tokens.index(2) + 1 if 2 in tokens else len(tokens))


def test_streamers_and_stopping_criteria_work_as_ever(pair):
    model, processor = pair
    inputs = ask(pair, ("What?", 1))
    expected = model.generate(**inputs, **RUN)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True)
    thread = threading.Thread(target=model.generate, kwargs={**inputs, **RUN, "streamer": streamer})
    thread.start()
    streamed = "".join(streamer)
    thread.join()
    assert streamed == processor.tokenizer.decode(expected[0, inputs["input_ids"].shape[1] :])

    class AfterThree(StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            done = input_ids.shape[1] >= inputs["input_ids"].shape[1] + 3
            return torch.full((len(input_ids),), done)

    short = model.generate(**inputs, **RUN, stopping_criteria=[AfterThree()])
    assert torch.equal(short, expected[:, : inputs["input_ids"].shape[1] + 3])


def test_a_processor_that_forbids_every_survivor_falls_back_to_the_global_order(pair):
    model, _ = pair
    inputs = ask(pair, ("What?", 1))
    best = model.generate(**inputs, max_new_tokens=1, do_sample=False, guard=methods.APC(beta=1.0))[0, -1].item()
    runner_up = model.generate(**inputs, max_new_tokens=1, do_sample=False, guard=False, bad_words_ids=[[best]])
    out = model.generate(
        **inputs, max_new_tokens=1, do_sample=True, guard=methods.APC(beta=1.0), bad_words_ids=[[best]]
    )
    assert out[0, -1] != best
    greedy = model.generate(
        **inputs, max_new_tokens=1, do_sample=False, guard=methods.APC(beta=1.0), bad_words_ids=[[best]]
    )
    assert torch.equal(greedy, runner_up)


def test_threads_with_different_knobs_do_not_mix(pair):
    model, _ = pair
    settings = [False, agla(), agla(alpha=0.5, beta=0.05), methods.VCD(alpha=3.0)]
    inputs = [ask(pair, (f"What is number {i}?", i)) for i in range(len(settings))]
    expected = [model.generate(**x, **RUN, guard=g) for x, g in zip(inputs, settings, strict=True)]
    assert len({tuple(e[0, -12:].tolist()) for e in expected}) > 1
    got: dict[int, list[torch.Tensor]] = {i: [] for i in range(len(settings))}

    def work(index):
        for _ in range(4):
            got[index].append(model.generate(**inputs[index], **RUN, guard=settings[index]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(settings))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, outputs in got.items():
        assert len(outputs) == 4
        assert all(torch.equal(output, expected[index]) for output in outputs)


@pytest.mark.parametrize("execution", ["lazy", "batched", "auto"])
def test_the_returned_cache_is_the_plain_one_and_continues_a_conversation(pair, execution):
    model, _ = pair
    inputs = ask(pair, ("What?", 1))
    out = model.generate(**inputs, **RUN, guard_execution=execution, return_dict_in_generate=True)
    cache = out.past_key_values
    assert type(cache) is DynamicCache
    assert cache.layers[0].keys.shape[0] == 1
    more = torch.cat([out.sequences, torch.full((1, 2), 70)], 1)
    turn = {**inputs, "input_ids": more, "attention_mask": torch.ones_like(more)}
    fresh = model.generate(**turn, **RUN, guard_execution="lazy")
    del turn["pixel_values"]  # the cache holds the picture; transformers refuses it a second time
    again = model.generate(
        **turn, **RUN, past_key_values=cache, return_dict_in_generate=True, guard_execution=execution
    )
    assert torch.equal(again.sequences, fresh)
    assert again.guard.execution == "lazy"
    assert again.guard.guarded
    with pytest.raises(MissingViewError, match="guard_views again"):
        model.generate(input_ids=more, past_key_values=again.past_key_values, **RUN)
    with pytest.raises(UnsupportedCallError, match="whole sequence"):
        model.generate(
            **{**inputs, "input_ids": more[:, -2:], "attention_mask": torch.ones_like(more)},
            past_key_values=again.past_key_values, **RUN,
        )  # fmt: skip


@pytest.mark.parametrize("execution", ["lazy", "batched", "auto"])
def test_outputs_beside_the_tokens_have_the_rows_of_plain_generate(pair, execution):
    model, _ = pair
    inputs = ask(pair, ("What?", 1), ("Who?", 2))
    want = {"return_dict_in_generate": True, "output_hidden_states": True, "output_logits": True, "output_scores": True}
    plain = model.generate(**inputs, guard=False, **RUN, **want)
    out = model.generate(**inputs, guard_execution=execution, **RUN, **want)
    assert type(out) is type(plain)
    assert out.guard.execution == "lazy"  # stacked, they would be those of all branches
    assert out.hidden_states[0][-1].shape == plain.hidden_states[0][-1].shape
    assert out.logits[0].shape == plain.logits[0].shape


def test_training_and_plain_calls_are_unguarded(pair):
    model, _ = pair
    inputs = ask(pair, ("What?", 1))
    tensors = {key: value for key, value in inputs.items() if key != "guard_views"}
    base = unguard(copy.deepcopy(model))
    assert torch.equal(model(**tensors).logits, base(**tensors).logits)
    model.requires_grad_(True)
    model.train()
    loss = model(**tensors, labels=tensors["input_ids"]).loss
    loss.backward()
    assert model.lm_head.weight.grad.abs().sum() > 0


def test_a_copy_of_a_guarded_model_is_guarded_on_its_own(pair):
    model, _ = pair
    twin = copy.deepcopy(model)
    inputs = ask(pair, ("What?", 1))
    expected = model.generate(**inputs, **RUN)
    unguard(model)
    assert torch.equal(twin.generate(**inputs, **RUN), expected)
