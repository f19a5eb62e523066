"""The promise of the engine: the same tokens, however its branches are run.

Everything is float64, where "the same" means the same. The reference (`support/recompute.py`) knows no
cache and no engine.
"""

import copy

import pytest
import recompute
import tiny
import torch
from matchers import Brightness

from lvlm_guard import guard, methods, unguard
from lvlm_guard.engine.call import Call
from lvlm_guard.engine.trace import GuardTrace
from lvlm_guard.errors import UnsupportedCallError
from lvlm_guard.evals.decoders.published import AGLAOfficial, VCDOfficial
from lvlm_guard.matching import local_view

STEPS = 14
SHAPES = {
    "llava": [(40, 40), (64, 48)], "llava_next": [(64, 32), (40, 64)], "qwen2_5_vl": [(60, 40), (40, 60)],
    "instructblip": [(40, 40), (64, 48)],
}  # fmt: skip
EXECUTIONS = ["lazy", "batched", "auto"]
MODES = {
    "beams": {"do_sample": False, "num_beams": 3},
    "beams returning two": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "beam sampling": {"do_sample": True, "num_beams": 2, "temperature": 0.7},
    "two samples each": {"do_sample": True, "num_return_sequences": 2},
    "warped sampling": {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9},
    "repetition penalty": {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
}


def agla(**knobs):
    return methods.AGLA(matcher=Brightness(), **knobs)


def method(rule, **knobs):
    return agla(**knobs) if rule == "agla" else methods.VCD(**knobs)


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def pair(request):
    model, processor = tiny.make(request.param, scale=5.0)
    model.family = request.param
    yield guard(model, processor, agla())
    unguard(model)
    unguard(processor)


def inputs_of(pair, rows=(0, 1)):
    model, processor = pair
    questions = ["Is there a dog?", "What is there in this picture, and where does it stand?"]
    pictures = [tiny.picture(11 + i, *SHAPES[model.family][i]) for i in rows]
    prompts = [tiny.prompt(processor, questions[i]) for i in rows]
    return processor(images=pictures, text=prompts, padding=True, return_tensors="pt").to(torch.float64)


def second_view(pair, inputs, rule, method_):
    """The image tensors of the second branch, made outside the engine."""
    model, processor = pair
    if rule == "vcd":
        family = model._lvlm_guard.family
        tensors = {key: inputs[key] for key in family.image_keys}
        trace = GuardTrace("vcd", {}, "single", True)
        return method_.view(Call(model, family, processor, None, tensors, [True], trace))
    frame = "squashed" if model.family in ("llava", "instructblip") else "original"
    views = inputs["guard_views"].views()
    matcher = Brightness()
    locals_ = [local_view(v.image, matcher([v.image], [v.text])[0], frame) for v in views]
    made = processor.image_processor(images=locals_, return_tensors="pt")
    return {"pixel_values": made["pixel_values"].double()}


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(
    ("rule", "knobs"), [("agla", {}), ("agla", {"alpha": 1.0, "beta": 0.1}), ("vcd", {"beta": 0.3})]
)
@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampling"])
def test_tokens_equal_a_recomputation_from_scratch(pair, rule, knobs, sample, execution):
    model, _ = pair
    inputs, chosen = inputs_of(pair), method(rule, **knobs)
    torch.manual_seed(5)
    with torch.no_grad():
        expected = recompute.decode(
            model, inputs, second_view(pair, inputs, rule, chosen), rule, chosen.alpha, chosen.beta, STEPS, sample
        )
    torch.manual_seed(5)
    got = model.generate(**inputs, max_new_tokens=STEPS, do_sample=sample, guard=chosen, guard_execution=execution)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("chosen", [AGLAOfficial(matcher=Brightness()), VCDOfficial(beta=0.3)], ids=lambda m: m.name)
def test_the_releases_read_the_second_picture_at_the_first_token_only(pair, chosen, execution):
    model, _ = pair
    inputs, rule = inputs_of(pair), chosen.name.removesuffix("-official")
    with torch.no_grad():
        second = second_view(pair, inputs, rule, chosen)
        expected = recompute.decode(model, inputs, second, rule, chosen.alpha, chosen.beta, STEPS, official=True)
    out = model.generate(
        **inputs,
        max_new_tokens=STEPS,
        do_sample=False,
        guard=chosen,
        guard_execution=execution,
        return_dict_in_generate=True,
    )
    assert torch.equal(out.sequences, expected)
    assert out.guard.execution == "lazy"  # batched, the branch would run at every step for nothing
    assert out.guard.local_forwards <= 1


@pytest.mark.parametrize("mode", MODES)
def test_lazy_equals_batched_equals_no_cache(pair, mode):
    model, _ = pair
    inputs = inputs_of(pair)

    def run(**extra):
        torch.manual_seed(3)
        return model.generate(**inputs, max_new_tokens=STEPS, **MODES[mode], **extra)

    expected = run(use_cache=False, guard_execution="batched")
    assert torch.equal(run(guard_execution="lazy"), expected)
    assert torch.equal(run(guard_execution="batched"), expected)
    assert torch.equal(run(guard_execution="auto"), expected)


def test_a_lazy_branch_rests_where_one_token_is_plausible(pair):
    model, _ = pair
    out = model.generate(
        **inputs_of(pair, (0,)),
        max_new_tokens=40,
        do_sample=False,
        guard_execution="lazy",
        return_dict_in_generate=True,
    )
    trace = out.guard
    assert 0 < trace.local_forwards < trace.global_forwards
    undecided = [not token.decided for token in trace.steps[0]]
    assert trace.local_forwards == sum(undecided)
    assert [token.divergence is not None for token in trace.steps[0]] == undecided


def test_auto_begins_lazy_and_stacks_once_the_branch_matters(pair):
    model, _ = pair
    run = {"max_new_tokens": 30, "do_sample": False, "return_dict_in_generate": True}
    inputs = inputs_of(pair)
    auto = model.generate(**inputs, **run, guard_execution="auto")
    lazy = model.generate(**inputs, **run, guard_execution="lazy")
    assert auto.guard.execution == "joined"
    assert auto.guard.local_forwards == 1 < lazy.guard.local_forwards
    assert torch.equal(auto.sequences, lazy.sequences)
    assert auto.past_key_values.layers[0].keys.shape[0] == len(inputs["input_ids"])
    short = model.generate(**inputs, **(run | {"max_new_tokens": 1}), guard_execution="auto")
    assert short.guard.execution == "lazy"


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampling"])
def test_identity_settings_give_plain_generate(pair, sample, execution):
    model, processor = pair
    inputs = inputs_of(pair)
    run = {"max_new_tokens": STEPS, "do_sample": sample}
    torch.manual_seed(9)
    plain = model.generate(**inputs, guard=False, **run)
    for same in (agla(alpha=0.0, beta=0.0), methods.VCD(alpha=0.0, beta=0.0), methods.VCD(beta=0.0, noise_step=0)):
        torch.manual_seed(9)
        if isinstance(same, methods.VCD) and same.alpha:
            continue
        assert torch.equal(model.generate(**inputs, guard=same, guard_execution=execution, **run), plain)
    prompts = [
        tiny.prompt(processor, text)
        for text in ("Is there a dog?", "What is there in this picture, and where does it stand?")
    ]
    pictures = [v.image for v in inputs["guard_views"].views()]
    own = processor(images=pictures, guard_images=pictures, text=prompts, padding=True, return_tensors="pt").to(
        torch.float64
    )
    if not sample:  # equal branches sharpen, so that sampling differs by design
        got = model.generate(**own, guard=agla(beta=0.0), guard_execution=execution, **run)
        assert torch.equal(got, plain)
    torch.manual_seed(9)
    assert torch.equal(model.generate(**inputs, guard=methods.APC(beta=0.0), **run), plain)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_row_of_a_batch_equals_the_same_request_alone(pair, execution):
    model, _ = pair
    for chosen in (agla(), methods.VCD(beta=0.3)):
        run = {"max_new_tokens": STEPS, "do_sample": False, "guard": chosen, "guard_execution": execution}
        both = inputs_of(pair)
        batch = model.generate(**both, **run)[:, both["input_ids"].shape[1] :]
        for row in (0, 1):
            one = inputs_of(pair, (row,))
            alone = model.generate(**one, **run)[0, one["input_ids"].shape[1] :]
            assert torch.equal(batch[row, : len(alone)], alone)


@pytest.mark.parametrize("mode", [{}, {"num_beams": 2}, {"use_cache": False}], ids=str)
@pytest.mark.parametrize("rule", ["agla", "vcd"])
def test_only_the_few_requests_of_a_batch_that_want_the_branch_run_it(pair, rule, mode, monkeypatch):
    monkeypatch.setattr("lvlm_guard.engine.session.EARLY", 99)  # the mechanism holds at any token
    model, processor = pair
    shapes = [*SHAPES[model.family], *SHAPES[model.family][::-1], *SHAPES[model.family]]
    prompts = [tiny.prompt(processor, f"What is number {i}?" + " Say more." * (i % 2)) for i in range(6)]
    pictures = [tiny.picture(30 + i, *shape) for i, shape in enumerate(shapes)]
    inputs = processor(images=pictures, text=prompts, padding=True, return_tensors="pt").to(torch.float64)
    few = 0
    for beta in (0.3, 0.5, 0.7, 0.8, 0.9):
        run = {"max_new_tokens": 5, "do_sample": False, "guard": method(rule, beta=beta), **mode}
        expected = model.generate(**inputs, **run, guard_execution="batched")
        for execution in ("lazy", "auto"):
            out = model.generate(**inputs, **run, guard_execution=execution, return_dict_in_generate=True)
            assert torch.equal(out.sequences, expected)
            few += out.guard.masks not in (0, 6)
    assert few, "in no run did few requests want the branch, so this test showed nothing"


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(
    "extra", [{"cache_implementation": "static"}, {"prefill_chunk_size": 16}, {"use_cache": False}], ids=str
)
def test_caches_and_chunks_change_no_token(pair, extra, execution):
    model, _ = pair
    inputs = inputs_of(pair)
    run = {"max_new_tokens": STEPS, "do_sample": False}
    if "prefill_chunk_size" in extra and not hasattr(model, "_supports_mm_encoder_outputs"):
        with pytest.raises(UnsupportedCallError, match="without looking at its picture"):
            model.generate(**inputs, **run, guard_execution=execution, **extra)
        return
    expected = model.generate(**inputs, **run, guard_execution="batched")
    assert torch.equal(model.generate(**inputs, **run, guard_execution=execution, **extra), expected)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampling"])
def test_prompt_lookup_and_an_assistant_change_no_greedy_token(pair, sample, execution):
    model, _ = pair
    one = inputs_of(pair, (1,))
    run = {"max_new_tokens": 24, "do_sample": False, "guard_execution": execution}
    expected = model.generate(**one, **run)
    if not sample:
        assert torch.equal(model.generate(**one, **run, prompt_lookup_num_tokens=3), expected)
        assistant = unguarded_copy(model)
        if model.family == "instructblip":  # its generate() takes no drafts; on older releases nor does a text model's
            if not hasattr(model, "_supports_mm_encoder_outputs"):
                return
            assistant = assistant.language_model
        for parameter in assistant.parameters():
            parameter.data *= 0.97  # drafts that are mostly right
        assert torch.equal(model.generate(**one, **run, assistant_model=assistant), expected)
    else:
        torch.manual_seed(1)
        out = model.generate(**one, **(run | {"do_sample": True}), prompt_lookup_num_tokens=3)
        assert out.shape[1] > one["input_ids"].shape[1]


def unguarded_copy(model):
    return unguard(copy.deepcopy(model))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_attention_implementations_agree(family, attention):
    model, processor = guard(*tiny.make(family, attention=attention, scale=5.0), agla())
    model.family = family
    inputs = inputs_of((model, processor), (1,))  # eager attention gives NaN where float64 meets padding, guard or not
    runs = [model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, guard_execution=e) for e in EXECUTIONS]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


@pytest.mark.parametrize(("dtype", "close"), [(torch.bfloat16, 0.05), (torch.float32, 1e-5)])
def test_narrower_types_stay_close_to_float64(dtype, close):
    wide, processor = tiny.make("llava", scale=1.5)
    narrow, _ = tiny.make("llava", dtype=dtype, scale=1.5)
    scores = []
    for model, kind in ((wide, torch.float64), (narrow, dtype)):
        guard(model, processor, agla(beta=0.0))
        model.family = "llava"
        inputs = inputs_of((model, processor)).to(kind)
        out = model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True, output_logits=True)
        scores.append(out.logits[0].double().softmax(-1))
    assert torch.allclose(*scores, atol=close)
    assert scores[0].max() > 4 / scores[0].shape[-1]  # far from uniform, where closeness would say nothing
