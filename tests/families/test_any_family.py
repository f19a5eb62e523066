"""Every family is proven or refused, and a proven one keeps the engine's promises; nothing here names its layout.

Models and processors are in `support/any_families.py`. The reference of a guarded answer is plain generate() on either
picture, forced to that answer, with the published arithmetic on its logits: no engine, no cache of a branch.
"""

import copy
import dataclasses
import math

import any_families
import prove_families
import pytest
import torch
from family_asking import QUESTIONS, RUN, STEPS, agla, inputs_of
from matchers import Brightness

from lvlm_guard import guard, methods, unguard
from lvlm_guard.engine.call import Call
from lvlm_guard.engine.rows import CACHE
from lvlm_guard.engine.trace import GuardTrace
from lvlm_guard.errors import UnsupportedCallError, UnsupportedModelError
from lvlm_guard.families.family import Family
from lvlm_guard.matching import local_view
from lvlm_guard.proving import proofs, trial
from lvlm_guard.proving.proof import Proof

EXECUTIONS = ["lazy", "batched", "auto"]
WIDE = torch.float64
NAMES = [*any_families.FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in any_families.SLOW)]
NARROW = (
    "qwen3_vl_moe", "qwen3_5_moe", "ernie4_5_vl_moe", "qwen3_5", "minicpmv4_6", "phi4_multimodal", "glm5_next",
    "glm4v_moe", "aria",
)  # fmt: skip


@pytest.fixture(scope="module", params=NAMES)
def pair(request):
    try:
        model, processor = any_families.make(request.param, dtype=torch.float32 if request.param in NARROW else WIDE)
    except (AttributeError, KeyError, ImportError) as error:
        pytest.skip(f"not in this transformers, or a package is missing: {error}")
    yield guard(model, processor, agla())
    unguard(model)
    unguard(processor)


def forced(model, inputs, answer):
    """The plain model's logits of an answer, [B, steps, V]."""
    length = inputs["input_ids"].shape[1]
    out = model.generate(
        **inputs, **RUN, return_dict_in_generate=True, output_logits=True, guard=False,
        prefix_allowed_tokens_fn=lambda row, ids: [int(answer[row, len(ids) - length])],
    )  # fmt: skip
    return torch.stack(out.logits, 1)


def test_the_model_is_proven(pair):
    model, processor = pair
    family = dataclasses.replace(model._lvlm_guard.family, proof=Proof())
    found = trial.self_check(family, model, processor)
    told = proofs.table()[model.config.model_type]["proof"]
    assert found.way == told["way"] == "prompt+chunk"
    assert found.error < 1e-6
    assert found.seen > 0.05  # the other picture changes the answer's logits
    for offered in ("stacks", "alone", "crops"):
        assert getattr(found, offered) >= told[offered]  # the table is what holds for eager attention too
    assert found.hides >= told["hides"] or "sliding window" in found.why["hides"]
    assert Family.of(model, processor).model_type == model.config.model_type


def test_the_question_is_found_in_a_finished_prompt(pair):
    views = inputs_of(pair)["guard_views"].views()
    assert [view.text for view in views] == QUESTIONS[:2]
    assert all(view.note is None for view in views)


@pytest.mark.parametrize("method", [agla(beta=0.0), methods.VCD(beta=0.05)], ids=["agla", "vcd"])
def test_each_token_is_what_the_published_rule_chooses_from_plain_logits(pair, method):
    model, processor = pair
    inputs = inputs_of(pair)
    if method.name not in proofs.table()[model.config.model_type]["methods"]:
        with pytest.raises(UnsupportedCallError, match="Ask one request at a time"):
            model.generate(**inputs, **RUN, guard=method)
        return
    prompt = inputs["input_ids"].shape[1]
    answer = model.generate(**inputs, **RUN, guard=method)[:, prompt:]
    plain = {key: value for key, value in inputs.items() if key != "guard_views"}
    views = inputs["guard_views"]
    family = model._lvlm_guard.family
    if isinstance(method, methods.VCD):
        tensors = {key: inputs[key] for key in family.image_keys if key in inputs}
        call = Call(model, family, processor, views, tensors, [True] * 2, GuardTrace("vcd", {}, "single", True))
        branch = method.branches()[0]
        other = plain | branch.pixels(call)
    else:
        frame = "squashed" if family.fixed_size else "original"
        match = Brightness()
        seen = [[local_view(v.image, match([v.image], [v.text])[0], frame) for v in row] for row in views.rows]
        made = (
            type(processor)
            .__mro__[1]
            .__call__(processor, images=seen, text=views.text, padding=True, return_tensors="pt")
        )
        other = dict(made.to(model.dtype))
    own, second = forced(model, plain, answer), forced(model, other, answer)
    more = second if isinstance(method, methods.AGLA) else own - second
    z = own + method.alpha * more
    if method.beta:
        z = z.masked_fill(own < own.max(-1, keepdim=True).values + math.log(method.beta), -math.inf)
    z[..., 2] = -math.inf  # the minimum length forbids the end
    assert torch.equal(z.argmax(-1), answer)
    assert (own - second).abs().max() > 0.02 * own.std()  # the branch says something else


@pytest.mark.parametrize("mode", [{}, {"num_beams": 2}, {"do_sample": True, "temperature": 0.7}], ids=str)
def test_lazy_equals_batched_equals_auto_equals_no_cache(pair, mode):
    model, _ = pair
    inputs = inputs_of(pair)

    def run(**more):
        torch.manual_seed(3)
        # without a cache plain generate() looks for one more picture where an answer holds a placeholder
        placeholders = [4, model._lvlm_guard.family.image_token_id(model.config) or 4]
        return model.generate(**inputs, **(RUN | mode), **more, suppress_tokens=placeholders)

    cacheless = model.config.model_type not in ("ernie4_5_vl_moe", "mllama", "glm5_next")  # theirs is needed
    if cacheless and not torch.equal(run(guard=False), run(guard=False, use_cache=False)):
        pytest.skip("plain generate() of this release says otherwise without a cache")  # beams over tiles, prefix masks
    lazy = run(guard_execution="lazy")
    assert torch.equal(run(guard_execution="batched"), lazy)
    assert torch.equal(run(guard_execution="auto"), lazy)
    if cacheless:
        assert torch.equal(run(use_cache=False, guard_execution="lazy"), lazy)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_no_strength_is_plain(pair, execution):
    model, _ = pair
    inputs = inputs_of(pair)
    plain = model.generate(**inputs, **RUN, guard=False)
    told = proofs.table()[model.config.model_type]["methods"]
    for nothing in [agla(alpha=0.0, beta=0.0), methods.VCD(alpha=0.0, beta=0.0)][: 1 + ("vcd" in told)]:
        assert torch.equal(model.generate(**inputs, **RUN, guard=nothing, guard_execution=execution), plain)
    again = inputs_of(pair, guard_images=[view.image for view in inputs["guard_views"].views()])
    assert torch.equal(model.generate(**again, **RUN, guard_execution=execution), plain)


def test_a_branch_that_few_requests_want_runs_for_those_alone(pair, monkeypatch):
    monkeypatch.setattr("lvlm_guard.engine.session.EARLY", 99)  # the mechanism holds at any token
    model, _ = pair
    inputs = inputs_of(pair, 6)
    alone = 0
    for beta in (0.05, 0.2, 0.5, 0.7, 0.8, 0.9, 0.95):
        expected = model.generate(**inputs, **RUN, guard=agla(beta=beta), guard_execution="batched")
        out = model.generate(**inputs, **RUN, guard=agla(beta=beta), return_dict_in_generate=True)
        assert torch.equal(out.sequences, expected)
        alone += out.guard.masks not in (0, 6)
    assert bool(alone) == model._lvlm_guard.family.proof.alone


def test_a_second_turn_goes_on_from_the_cache(pair):
    model, _ = pair
    if model.config.model_type in ("blip-2", "instructblip"):
        pytest.skip("plain generate() asks for the picture again")
    inputs = inputs_of(pair)
    run = RUN | {"return_dict_in_generate": True}
    out = model.generate(**inputs, **run)
    ids = torch.cat([out.sequences, torch.full((2, 4), 70)], 1)
    mask = torch.cat([inputs["attention_mask"], inputs["attention_mask"].new_ones(2, STEPS + 4)], 1)
    turn = {"input_ids": ids, "attention_mask": mask, "guard_views": inputs["guard_views"]}
    turn |= {key: inputs[key] for key in ("cross_attention_mask",) if key in inputs}
    plain = model.generate(**turn, **run, guard=False, **{CACHE: copy.deepcopy(out[CACHE])})
    # with the picture itself as the second view, the branch must say what the cache says: greedy tokens stay plain
    own = inputs_of(pair, guard_images=[view.image for view in inputs["guard_views"].views()])
    noted = [(module, module.rope_deltas) for module in model.modules() if "rope_deltas" in vars(module)]
    same = model.generate(
        **turn | {"guard_views": own["guard_views"]}, **run, guard=agla(beta=0.0, alpha=4.0),
        **{CACHE: copy.deepcopy(out[CACHE])},
    )  # fmt: skip
    assert torch.equal(same.sequences, plain.sequences)
    assert same.guard.local_forwards == STEPS
    assert all(torch.equal(module.rope_deltas, deltas) for module, deltas in noted if deltas is not None)
    runs = [model.generate(**turn, **run, guard_execution=e, **{CACHE: copy.deepcopy(out[CACHE])}) for e in EXECUTIONS]
    assert all(torch.equal(again.sequences, runs[0].sequences) for again in runs)


def test_a_branch_under_another_prompt_reads_pictures_of_which_lists_tell():
    try:
        model, processor = any_families.make("unlimited_ocr")
    except AttributeError as error:
        pytest.skip(f"not in this transformers: {error}")
    pair = guard(model, processor, methods.ICD(beta=0.01))
    inputs = inputs_of(pair)
    out = pair[0].generate(**inputs, **RUN, return_dict_in_generate=True)
    assert out.guard.local_forwards
    own = pair[0].generate(**inputs, **RUN, guard=methods.ICD(alpha=0.0, beta=0.0))
    assert torch.equal(own, pair[0].generate(**inputs, **RUN, guard=False))


@pytest.mark.parametrize("name", any_families.REFUSED)
def test_a_family_that_can_not_be_guarded_is_refused_with_what_was_found(name):
    if name == "llama4" and CACHE != "cache":
        pytest.skip("an older transformers runs it")
    try:
        model, processor = any_families.make(name)
    except AttributeError as error:
        pytest.skip(f"not in this transformers: {error}")
    kind = type(model)
    with pytest.raises(UnsupportedModelError, match=any_families.REFUSED[name]):
        guard(model, processor, agla())
    assert type(model) is kind
    assert not hasattr(model, "_lvlm_guard")
    assert "refused" in proofs.table()[model.config.model_type]


PECULIAR = {
    "unlimited_ocr": "tells its tiles in lists",
    "qianfan_ocr": "its template writes another placeholder",
    "pp_chart2table": "its template writes every image token", "chameleon": "rules out the tokens of pictures it draws",
    "cosmos3_edge": "wants token types", "kimi_k25": "names the merging of patches otherwise",
    "fuyu": "its processor writes its pictures' tokens itself, and joins their patches",
    "qwen2_5_omni_thinker": "counts the mark behind a picture",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PECULIAR)
def test_a_family_with_habits_of_its_own_is_proven_as_the_table_says(name):
    if name == "fuyu" and CACHE != "cache":
        pytest.skip("plain generate() of an older transformers fails on a batch")
    try:
        kind, told = prove_families.proved(name)
    except AttributeError as error:
        pytest.skip(f"not in this transformers: {error}")
    held, found = proofs.table()[kind]["proof"], told["proof"]
    assert [found[what] for what in ("way", "stacks", "alone", "crops", "hides")] == [
        held[what] for what in ("way", "stacks", "alone", "crops", "hides")
    ]
