"""Whatever drives the model, a guarded call is guarded at every token, or an error."""

import copy
import threading

import pytest
import tiny
import torch
from asking import RUN, agla, ask
from transformers import StoppingCriteria

from lvlm_guard import guard, unguard
from lvlm_guard.errors import UnsupportedCallError, UnsupportedModelError
from lvlm_guard.methods import APC

EXECUTIONS = ["lazy", "batched", "auto"]


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def pair(request):
    return guard(*tiny.make(request.param, scale=5.0), agla(beta=0.1))


def by_hand(model, input_ids, whole_rows=True, generation_config=None, **kwargs):
    """A decoding loop as recipes have it: prepare, call, choose."""
    for name in ("logits_processor", "stopping_criteria", "synced_gpus", "streamer"):
        kwargs.pop(name, None)
    ids, first, fresh = input_ids, True, input_ids
    while ids.shape[1] < generation_config.max_length:
        seen = ids if whole_rows else fresh
        step = {} if first else {"next_sequence_length": 1}
        inputs = model.prepare_inputs_for_generation(seen, is_first_iteration=first, **step, **kwargs)
        out = model(**inputs, return_dict=True)
        kwargs = model._update_model_kwargs_for_generation(out, kwargs, is_encoder_decoder=False)
        scores = out.logits[:, -1].index_fill(1, torch.tensor(generation_config.suppress_tokens), -torch.inf)
        fresh = scores.argmax(-1, keepdim=True)
        ids, first = torch.cat([ids, fresh], 1), False
    return ids


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_loop_of_the_callers_own_that_hands_on_whole_rows_is_guarded(pair, execution):
    model, _ = pair
    inputs = ask(pair, ("What?", 1))
    expected = model.generate(**inputs, **RUN, eos_token_id=None)
    got = model.generate(**inputs, **RUN, eos_token_id=None, guard_execution=execution, custom_generate=by_hand)
    assert torch.equal(got, expected)
    assert not torch.equal(got, model.generate(**inputs, **RUN, eos_token_id=None, guard=False))


def newest_only(model, input_ids, **kwargs):
    return by_hand(model, input_ids, whole_rows=False, **kwargs)


def in_another_thread(model, input_ids, **kwargs):
    found = []
    thread = threading.Thread(target=lambda: found.append(by_hand(model, input_ids, **kwargs)))
    thread.start()
    thread.join()
    return found[0]


def first_token_only(model, input_ids, generation_config=None, **kwargs):
    """One guarded step; the rest of the answer comes from elsewhere."""
    inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **kwargs_of(kwargs))
    token = model(**inputs, return_dict=True).logits[:, -1].argmax(-1, keepdim=True)
    return torch.cat([input_ids, token, torch.full_like(token, 70), torch.full_like(token, 71)], 1)


def without_the_prompt(model, input_ids, **kwargs):
    return by_hand(model, input_ids, **kwargs)[:, input_ids.shape[1] :]


def text_alone(model, input_ids, **kwargs):
    by_hand(model, input_ids, **kwargs)
    return "There is a dog."


def kwargs_of(kwargs):
    return {k: v for k, v in kwargs.items() if k not in ("logits_processor", "stopping_criteria", "synced_gpus")}


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(
    "loop", [newest_only, in_another_thread, first_token_only, without_the_prompt, text_alone], ids=lambda f: f.__name__
)
def test_a_loop_whose_tokens_the_guard_did_not_see_chosen_raises(pair, loop, execution):
    model, _ = pair
    inputs = ask(pair, ("What?", 1))
    for extra in ({}, {"return_dict_in_generate": True}, {"guard": APC(beta=0.5)}):
        with pytest.raises(UnsupportedCallError, match="custom_generate"):
            model.generate(**inputs, **RUN, eos_token_id=None, custom_generate=loop, guard_execution=execution, **extra)


@pytest.fixture
def recipe(tmp_path):
    """A folder of custom_generate whose recipe calls generate()."""
    folder = tmp_path / "custom_generate"
    folder.mkdir()
    (folder / "generate.py").write_text("def generate(model, **kwargs):\n    return model.generate(**kwargs)\n")
    (tmp_path / "config.json").write_text("{}")
    return {"custom_generate": str(tmp_path), "trust_remote_code": True}


def test_a_recipe_in_a_folder_that_calls_generate_raises_where_it_would_answer_plainly(pair, recipe):
    model, _ = pair
    inputs = ask(pair, ("What?", 1))
    with pytest.raises(UnsupportedCallError, match="custom_generate"):
        model.generate(**inputs, **RUN, **recipe)


def test_a_generate_that_was_put_on_the_object_itself_would_hide_the_guards_and_is_refused():
    model, processor = tiny.make("llava", scale=5.0)
    model.generate = model.generate  # as repositories with a recipe of their own and patching libraries leave it
    with pytest.raises(UnsupportedModelError, match="generate of its own"):
        guard(model, processor, agla())
    del model.generate
    assert guard(model, processor, agla())[0] is model


def test_a_recipe_is_plain_throughout_where_the_call_is_left_out_of_the_guard(pair, recipe):
    model, _ = pair
    inputs = ask(pair, ("What?", 1))
    plain = unguard(copy.deepcopy(model)).generate(**without_views(inputs), **RUN)
    assert torch.equal(model.generate(**inputs, **RUN, **recipe, guard=False), plain)


def test_embeddings_are_a_prompt_where_the_call_is_left_out_of_the_guard(pair):
    model, processor = pair
    if processor.chat_template is None:
        pytest.skip("InstructBLIP's own generate() takes no embeddings")
    inputs = ask(pair, ("How are you?",))
    base = unguard(copy.deepcopy(model))
    given = {**inputs, "inputs_embeds": base.get_input_embeddings()(inputs["input_ids"])}
    assert torch.equal(model.generate(**given, **RUN, guard=False), base.generate(**given, **RUN))


def test_an_assistant_that_is_guarded_too_drafts_plainly(pair):
    model, processor = pair
    if processor.chat_template is None:
        pytest.skip("InstructBLIP's own generate() takes no drafts")
    inputs = ask(pair, ("What?", 1))
    assistant = copy.deepcopy(model)
    for guarding in ({}, {"guard": False}):
        expected = model.generate(**inputs, **RUN, **guarding)
        assert torch.equal(model.generate(**inputs, **RUN, **guarding, assistant_model=assistant), expected)
    base = unguard(copy.deepcopy(model))
    assert torch.equal(base.generate(**without_views(inputs), **RUN, assistant_model=assistant), expected)


def test_a_call_that_says_it_drafts_raises_where_views_came_with_it(pair):
    model, _ = pair
    inputs = ask(pair, ("What?", 1))
    config = copy.deepcopy(model.generation_config)
    config.is_assistant = True
    with pytest.raises(UnsupportedCallError, match="is_assistant"):
        model.generate(**inputs, **RUN, generation_config=config)


def test_a_call_that_says_it_drafts_raises_where_no_other_model_asked_for_a_draft(pair):
    model, _ = pair
    inputs = without_views(ask(pair, ("What?", 1)))
    config = copy.deepcopy(model.generation_config)
    config.is_assistant = True
    with pytest.raises(UnsupportedCallError, match="no other model asked"):
        model.generate(**inputs, **RUN, generation_config=config)
    told = {"return_dict_in_generate": True, "output_scores": True}  # a draft's confidence is read from its scores
    plain = model.generate(**inputs, **RUN, **told, generation_config=config, guard=False)
    assert len(plain.sequences) == 1


def without_views(inputs):
    return {key: value for key, value in inputs.items() if key != "guard_views"}


def test_a_recipe_without_a_picture_is_plain_and_says_so(pair):
    model, processor = pair
    if processor.chat_template is None:
        pytest.skip("InstructBLIP's processor writes a picture's tokens into every prompt")
    inputs = ask(pair, ("How are you?",))
    out = model.generate(**inputs, **RUN, eos_token_id=None, custom_generate=newest_only)
    assert torch.equal(out, model.generate(**inputs, **RUN, eos_token_id=None, guard=False))


class AtToken(StoppingCriteria):
    """Ends an answer at any of some tokens, as stop_strings does."""

    def __init__(self, tokens, prompt):
        self.tokens, self.prompt = torch.tensor(tokens), prompt

    def __call__(self, input_ids, scores, **_):
        return torch.isin(input_ids[:, -1], self.tokens) & (input_ids.shape[1] > self.prompt)


@pytest.mark.parametrize("execution", ["lazy", "batched"])
@pytest.mark.parametrize("ends", [{"eos_token_id": 2, "pad_token_id": 5}, {"eos_token_id": 2, "pad_token_id": 0}, {}])
def test_beams_that_a_criterion_stops_early_are_guarded_answers_without_what_fills_them(pair, execution, ends):
    model, _ = pair
    inputs = ask(pair, ("What?", 1), ("Who is there?", 2))
    prompt = inputs["input_ids"].shape[1]
    run = {**RUN, "eos_token_id": None, **ends, "num_beams": 3, "num_return_sequences": 2, "guard_execution": execution}
    long = model.generate(**inputs, **run, return_dict_in_generate=True).sequences
    short = 0
    for at in range(1, 4):
        stop = {"stopping_criteria": [AtToken(long[:1, prompt + at].tolist(), prompt)]}
        out = model.generate(**inputs, **run, **stop, return_dict_in_generate=True)
        lengths = (out.beam_indices >= 0).sum(1).tolist()
        assert [len(steps) for steps in out.guard.steps] == lengths
        for steps, row, length in zip(out.guard.steps, out.sequences, lengths, strict=True):
            assert [step.token for step in steps] == row[prompt : prompt + length].tolist()
        assert torch.equal(model.generate(**inputs, **run, **stop), out.sequences)
        short += len(set(lengths)) > 1
    assert short, "in no run did one answer end before another"


def fills(model, input_ids, **kwargs):
    """One guarded step, then fill, a token of its own, and fill again."""
    ids = first_token_only(model, input_ids, **kwargs)
    fill = torch.full_like(ids[:, :1], 5)
    return torch.cat([ids[:, :-2], fill, ids[:, -1:], fill], 1)


@pytest.mark.parametrize("loop", [fills, first_token_only], ids=lambda f: f.__name__)
def test_beams_of_a_loop_whose_tokens_the_guard_did_not_see_chosen_raise(pair, loop):
    model, _ = pair
    inputs = ask(pair, ("What?", 1))
    ends = {"eos_token_id": 2, "pad_token_id": 5, "num_beams": 2}
    with pytest.raises(UnsupportedCallError, match="custom_generate"):
        model.generate(**inputs, **RUN, **ends, custom_generate=loop)
