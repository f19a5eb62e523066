"""Methods that act inside the model call: other prompts, steered layers, early layers, attention scores.

The reference of a steered answer is the same call without a cache, which computes all from scratch at each step: what a
method does at a position may then depend on nothing but the tokens before it.
"""

import copy
import dataclasses
from contextlib import ExitStack, contextmanager

import any_families
import family_parts
import pytest
import tiny
import torch
from drawn_statistics import drawn
from matchers import Brightness
from transformers import LlavaForConditionalGeneration, MistralConfig

from lvlm_guard import guard, methods, unguard
from lvlm_guard.engine.attention import attending
from lvlm_guard.engine.call import Call
from lvlm_guard.engine.method import Branch, Method
from lvlm_guard.engine.steering import Decoder, Pass, edited
from lvlm_guard.errors import KnobError, UnknownNameError, UnsupportedCallError, UnsupportedModelError
from lvlm_guard.methods.revis import moved

NO_PICTURES = list(range(4, 12))  # random models would answer with pictures' placeholders
RUN = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "suppress_tokens": NO_PICTURES}
INSIDE = {
    "icd": {"beta": 0.05}, "m3id": {"gate": None, "lam": 0.3},
    "pai": {"alpha": 0.8, "gamma": 1.5, "beta": 0.05, "start": 1}, "iat": {"alpha": 2.0, "layers_to": 1.0},
    "dola": {"beta": 0.01, "candidates": (1, 2)}, "deco": {"alpha": 2.0},
    "rudder": {"alpha": 1.0, "relative": True}, "vista": {"lam": 0.5}, "revisit": {"beta": 1e-3, "early": "all"},
    "vga": {"beta": 3.0, "layers_to": 1.0},
    "marine": {"finds": lambda image: ["dog", "cat"]},
    "revis": {"alpha": 1.0, "tau": -0.2}, "vti": {"alpha": 4.0}, "adaiat": {"layers_from": 0.0, "layers_to": 1.0},
}  # fmt: skip
LATER = ("qwen2_5_vl", "qwen3_vl", "internvl", "gemma3")
FAMILIES = ["llava", *(pytest.param(name, marks=pytest.mark.slow) for name in LATER)]
QUESTIONS = ["Is there a dog in the picture?", "What?"]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    model, processor = any_families.make(request.param, dtype=torch.float64)
    yield guard(model, processor, methods.AGLA(matcher=Brightness()), check="never")
    unguard(model)
    unguard(processor)


def asked(pair, rows=(0, 1)):
    model, processor = pair
    prompts = [model._lvlm_guard.family.asked(processor, QUESTIONS[row], 1) for row in rows]
    pictures = [[tiny.picture(10 + row, 64, 64)] for row in rows]
    return processor(images=pictures, text=prompts, padding=True, padding_side="left", return_tensors="pt").to(
        model.dtype
    )


def answer(pair, method, rows=(0, 1), **more):
    inputs = asked(pair, rows)
    out = pair[0].generate(**inputs, **(RUN | more), guard=method, return_dict_in_generate=True)
    return out.sequences[:, inputs["input_ids"].shape[1] :].tolist(), out.guard


def drafts(model):
    """An assistant whose drafts are right in part."""
    assistant = unguard(copy.deepcopy(model))
    for parameter in assistant.parameters():
        parameter.data *= 0.97
    return assistant


def made(name, pair=None, **knobs):
    kind = methods.REGISTRY.get(name)
    if kind.needs_statistics:
        knobs["statistics"] = drawn(name, pair[0])
    return kind(**(INSIDE[name] | knobs))


@pytest.mark.parametrize("name", INSIDE)
def test_it_depends_on_the_tokens_alone_and_acts(pair, name):
    method = made(name, pair)
    tokens, trace = answer(pair, method)
    assert trace.guarded
    assert len(trace.steps[0]) == 6
    run = RUN | {"return_dict_in_generate": True, "output_logits": True}
    acts, plain = (pair[0].generate(**asked(pair), **run, guard=by).logits[-1] for by in (method, False))
    assert not torch.allclose(acts, plain.to(acts), atol=1e-3), "the knobs should be strong enough to tell"
    assert answer(pair, method, use_cache=False)[0] == tokens
    assert answer(pair, method, guard_execution="batched")[0] == tokens
    assert [answer(pair, method, rows=(row,))[0][0] for row in (0, 1)] == tokens
    drafted = [answer(pair, method, rows=(row,), assistant_model=drafts(pair[0]))[0][0] for row in (0, 1)]
    assert drafted == tokens
    beams = answer(pair, method, num_beams=2)[0]
    assert beams == answer(pair, method, num_beams=2, use_cache=False)[0]


def test_what_moves_the_last_layer_is_read_by_norm_and_head(pair):
    method, seen = made("revis", pair, layer=-1), []
    model, tensors = pair[0], drawn("revis", pair[0]).tensors
    last = len(Decoder(model).layers) - 1
    steered = model.generate(
        **asked(pair), **RUN, guard=method, return_dict_in_generate=True, output_logits=True
    ).logits[0]
    answer(pair, Probe(read=(last,), seen=seen))
    step = seen[0][0]
    by_hand = step.call.decoder.lens(moved(step.hidden(last), tensors["u"][-1], method.alpha, method.tau))
    assert not torch.allclose(step.logits, by_hand, atol=1e-3)
    scale = (step.logits / step.call.decoder.lens(step.hidden(last))).nanmedian()  # some multiply or cap their logits
    if float(scale) == pytest.approx(1.0):
        torch.testing.assert_close(steered.to(by_hand), by_hand)


OFF = {
    "icd": {"alpha": 0.0, "beta": 0.0}, "m3id": {"lam": 0.0}, "pai": {"alpha": 0.0, "gamma": 1.0},
    "iat": {"alpha": 0.0}, "rudder": {"alpha": 0.0}, "vista": {"lam": 0.0, "alpha": 0.0}, "deco": {"alpha": 0.0},
    "vga": {"beta": 0.0}, "marine": {"gamma": 0.0, "finds": lambda image: ["dog"]}, "revis": {"alpha": 0.0},
    "vti": {"alpha": 0.0}, "adaiat": {"alpha": 0.0},
}  # fmt: skip


@pytest.mark.parametrize("name", OFF)
def test_off_is_plain_bit_for_bit(pair, name):
    inputs, run = asked(pair), RUN | {"return_dict_in_generate": True, "output_logits": True}
    guarded = pair[0].generate(**inputs, **run, guard=made(name, pair, **OFF[name]))
    plain = pair[0].generate(**asked(pair), **run, guard=False)
    assert torch.equal(guarded.sequences, plain.sequences)
    if name not in ("m3id", "deco"):  # log-probabilities; a cut
        assert all(torch.equal(a, b.to(a)) for a, b in zip(guarded.logits, plain.logits, strict=True))


@pytest.mark.parametrize("name", ["pai", "iat", "vga"])
def test_past_a_sliding_window_the_same_columns_are_rescored(name):
    config, processor = tiny.make("llava")[0].config, any_families.make("llava")[1]
    config.text_config = MistralConfig(**family_parts.text(processor.tokenizer, sliding_window=24))
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).double().eval()
    for parameter in model.parameters():
        parameter.data *= 3
    pair = guard(model, processor, methods.AGLA(matcher=Brightness()), check="never")
    inputs = asked(pair, (0,))
    assert inputs["input_ids"].shape[1] > 24
    run = RUN | {"max_new_tokens": 12, "return_dict_in_generate": True, "output_logits": True, "guard": made(name)}
    cached, afresh = (torch.stack(model.generate(**inputs, **run, use_cache=use).logits) for use in (True, False))
    torch.testing.assert_close(cached, afresh, rtol=0, atol=1e-8)
    unguard(model)


@pytest.mark.parametrize("name", ["pai", "iat", "vga"])
def test_attention_is_rescored_alike_under_every_kernel(name):
    found = []
    for kernel in ("sdpa", "eager"):
        model, processor = any_families.make("llava", dtype=torch.float32, attention=kernel)
        guarded = guard(model, processor, methods.AGLA(matcher=Brightness()), check="never")
        inputs = asked(guarded, (0,))
        out = model.generate(
            **inputs, **RUN, guard=made(name, guarded), output_logits=True, return_dict_in_generate=True
        )
        found.append((out.sequences, torch.stack(out.logits)))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-4)


# --- the mechanisms, by a method that does one thing


@dataclasses.dataclass(frozen=True)
class Probe(Method):
    name = "probe"
    view: object = None
    steer: object = None
    read: tuple = ()
    seen: object = None

    def branches(self):
        return (self.view,) if self.view else ()

    @property
    def steers(self):
        return self.steer is not None

    def around(self, passed):
        return self.steer(passed)

    def layers(self, call):
        return self.read

    def assemble(self, step, branches):
        if self.seen is not None:
            self.seen.append((step, branches))
        return step.logits if branches is None else branches[0].to(step.logits.dtype)


def test_a_branch_with_the_same_prompt_reads_as_the_global_one(pair):
    for view in (
        Branch("same", prompt=lambda call: call.rewritten(lambda prompt, _: prompt)),
        Branch("same", around=plainly),
    ):
        seen = []
        tokens, _ = answer(pair, Probe(view, seen=seen))
        for step, (other,) in seen:
            torch.testing.assert_close(other.to(step.logits), step.logits, rtol=0, atol=1e-8)
        assert tokens == pair[0].generate(**asked(pair), **RUN, guard=False)[:, -6:].tolist()


@contextmanager
def plainly(passed):
    yield


def test_a_prompt_without_its_picture_is_the_text_alone(pair):
    model = pair[0]
    seen = []
    answer(pair, Probe(Branch("text", prompt=lambda call: dict(call.without_pictures())), seen=seen))
    step, (other,) = seen[0]
    made = step.call.without_pictures()
    assert not (made["input_ids"] == model.config.image_token_id).any()
    assert made["attention_mask"][:, -1].all()
    assert made["attention_mask"].sum(-1).unique().numel() == 2
    for row in (0, 1):  # alone, without padding
        ids = made["input_ids"][row][made["attention_mask"][row].bool()][None]
        alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1]
        torch.testing.assert_close(other[row : row + 1].to(alone), alone, rtol=0, atol=1e-8)


def test_hidden_states_are_those_of_the_layers(pair):
    model, seen = pair[0], []
    inputs = asked(pair, (0,))
    out = model.generate(**inputs, **RUN, guard=Probe(read=(0, 1), seen=seen), return_dict_in_generate=True)
    ids = out.sequences
    whole = {
        k: v
        for k, v in inputs.items()
        if k not in ("guard_views", "input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
    }
    if "mm_token_type_ids" in inputs or "token_type_ids" in inputs:
        pytest.skip("a plain forward over the whole rows would need their types")
    states = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, **whole).hidden_states
    length = inputs["input_ids"].shape[1]
    for place, (step, _) in enumerate(seen):
        for layer in (0, 1):
            torch.testing.assert_close(step.hidden(layer)[0], states[layer + 1][0, length - 1 + place])
    with pytest.raises(KnobError, match="does not name this layer"):
        seen[0][0].hidden(7)


def test_rows_without_a_picture_stay_plain_when_others_are_steered():
    model, processor = any_families.make("llava", dtype=torch.float64)
    both = guard(model, processor, methods.AGLA(matcher=Brightness()), check="never")
    family = model._lvlm_guard.family
    prompts = [family.asked(processor, "What?", 1), family.asked(processor, "Tell a story.", 0)]
    inputs = processor(
        images=[tiny.picture(1, 32, 32)], text=prompts, padding=True, padding_side="left", return_tensors="pt"
    )
    inputs = inputs.to(torch.float64)
    plain = model.generate(**inputs, **RUN, guard=False)
    for name in ("pai", "rudder", "vista", "iat", "vga"):
        found = model.generate(**inputs, **RUN, guard=made(name))
        assert found[1].tolist() == plain[1].tolist(), name
        assert found[0].tolist() != plain[0].tolist(), name
    unguard(both[0])


def test_what_cannot_be_steered_is_refused(pair):
    inputs = asked(pair)
    with pytest.raises(UnsupportedCallError, match="a compiled call"):
        pair[0].generate(**inputs, **RUN, guard=made("rudder"), cache_implementation="static")
    with pytest.raises(UnsupportedCallError, match="a prompt in chunks does not show it"):
        pair[0].generate(**inputs, **RUN, guard=made("rudder"), prefill_chunk_size=8)
    with pytest.raises(KnobError, match="this model has"):
        pair[0].generate(**inputs, **RUN, guard=made("rudder", layer=99))
    with pytest.raises(KnobError, match="counts from 0"):
        pair[0].generate(**inputs, **RUN, guard=made("dola", candidates=(40,)))


@pytest.mark.parametrize(("name", "knobs"), [("deco", {}), ("revisit", {}), ("vista", {}), ("revis", {"layer": -1})])
def test_layers_of_several_streams_are_refused_by_who_reads_or_moves_them(pair, name, knobs):
    """Hyper-connections, such as Qwen4Exp's, hand several states a token from layer to layer."""
    twice = (
        pair[0].get_decoder().layers[-1].register_forward_hook(lambda _module, _given, out: torch.cat([out] * 2, -1))
    )
    try:
        with pytest.raises(UnsupportedModelError, match="numbers a token, not one state"):
            pair[0].generate(**asked(pair), **RUN, guard=made(name, pair, **knobs))
    finally:
        twice.remove()


@pytest.mark.parametrize("name", ["revisit", "rudder"])
def test_layers_that_skip_the_prompt_are_refused_by_who_learns_from_it(name):
    model, _ = pair = guard(
        *any_families.make("gemma4", dtype=torch.float64), methods.AGLA(matcher=Brightness()), check="never"
    )
    lengths = []
    last = model.get_decoder().layers[-1]
    watched = last.register_forward_hook(
        lambda _module, _given, states: lengths.append((states[0] if isinstance(states, tuple) else states).shape[-2])
    )
    answer(pair, methods.APC())
    watched.remove()
    with ExitStack() as refused:
        if lengths[0] == 1:  # newer releases of transformers; older ones run the whole prompt through
            refused.enter_context(pytest.raises(UnsupportedModelError, match="gives states of 1 of the prompt's"))
        answer(pair, methods.REGISTRY.get(name)())
    unguard(model)


def test_a_prompt_half_of_which_is_cached_is_refused_by_who_learns_from_it(pair):
    first = asked(pair, (0,))
    out = pair[0].generate(**first, **RUN, guard=False, return_dict_in_generate=True)
    later = torch.cat([out.sequences, out.sequences[:, -3:]], 1)
    for name, words in (("rudder", "without past_key_values"), ("icd", "without past_key_values")):
        with pytest.raises(UnsupportedCallError, match=words):
            pair[0].generate(
                input_ids=later,
                guard_views=first["guard_views"],
                past_key_values=out.past_key_values,
                **RUN,
                guard=made(name),
            )


def test_attention_that_the_interface_does_not_show_is_refused():
    model, _ = any_families.make("llava", dtype=torch.float64)
    decoder = Decoder(model)
    decoder.layers[1].self_attn.forward = lambda hidden_states, **_: (hidden_states, None)

    class Passed:
        count, guarded = 1, None

    with (
        pytest.raises(UnsupportedModelError, match="does not go through"),
        attending(Passed(), decoder, [1], lambda rows: None),
    ):
        model(input_ids=torch.ones(1, 3, dtype=torch.long))


def test_layers_that_share_one_attention_are_changed_in_each():
    model, _ = any_families.make("llava", dtype=torch.float64)
    decoder, seen = Decoder(model), []
    decoder.layers[1].self_attn = decoder.layers[0].self_attn

    class Passed:
        count, guarded, ids = 1, None, torch.ones(1, 3, dtype=torch.long)

    with attending(Passed(), decoder, [0, 1], lambda rows: seen.append(rows.index)):
        model(input_ids=Passed.ids, use_cache=False)
    assert len(seen) == 2


def test_rows_are_told_apart_on_a_layers_own_device():
    call = Call(None, None, None, None, None, [True, False], None)
    given = torch.empty(2, 5, 4, device="meta")  # a dispatched model's layer, elsewhere than the prompt's tokens
    assert Pass(call, torch.zeros(2, 5), 0, 3, [0, 1]).placed(given, given[:, 3:]).shape == given.shape


def test_hooks_are_gone_afterwards_and_inert_for_other_threads():
    import threading

    layer, x = torch.nn.Linear(3, 3), torch.ones(1, 2, 3)
    plain, other = layer(x), []
    with edited([layer], lambda index, given: given + 1):
        thread = threading.Thread(target=lambda: other.append(layer(x)))
        thread.start()
        thread.join()
        assert torch.equal(layer(x), plain + 1)
    assert torch.equal(other[0], plain)
    assert torch.equal(layer(x), plain)
    assert not layer._forward_hooks


# --- several methods at once


def test_one_assembles_and_any_number_steer(pair):
    steering = [made("rudder"), made("iat")]
    both = answer(pair, [methods.VCD(beta=0.05), *steering])
    assert both[1].method == "vcd+rudder+iat"
    assert both[1].knobs["rudder"]["relative"] is True
    assert both[0] == answer(pair, [methods.VCD(beta=0.05), *steering], use_cache=False)[0]
    alone = [answer(pair, by) for by in (steering, methods.VCD(beta=0.05))]
    likely = [tuple(str(step.log_prob) for step in trace.steps[0]) for _, trace in (both, *alone)]
    assert len(set(likely)) == 3
    off = [methods.VCD(alpha=0.0, beta=0.0), *steering]
    assert answer(pair, off)[0] == alone[0][0]


def test_methods_that_do_not_combine_are_refused(pair):
    for wrong, words in (
        ("agla+vcd", "both assemble logits"), ("rudder+rudder", "different methods"), ([made("rudder")], "two or more"),
    ):  # fmt: skip
        with pytest.raises(KnobError, match=words):
            pair[0].generate(**asked(pair), **RUN, guard=wrong)
    with pytest.raises(KnobError, match="the methods themselves"):
        guard(*pair, "agla+rudder", alpha=1.0, check="never")
    with pytest.raises(UnknownNameError, match="rudde"):
        guard(*pair, "agla+rudde", check="never")
