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
import tiny
import torch
from matchers import Brightness

from lvlm_guard import guard, methods, unguard
from lvlm_guard.engine import rows
from lvlm_guard.engine.call import Call
from lvlm_guard.engine.hiding import Hidden
from lvlm_guard.engine.reading import Reader
from lvlm_guard.engine.rows import CACHE
from lvlm_guard.engine.trace import GuardTrace
from lvlm_guard.errors import KnobError, TextError, UnsupportedCallError, UnsupportedModelError
from lvlm_guard.families.family import Family
from lvlm_guard.matching import local_view
from lvlm_guard.proving import proofs, trial
from lvlm_guard.proving.proof import Proof

STEPS = 6
RUN = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}
EXECUTIONS = ["lazy", "batched", "auto"]
QUESTIONS = ["Is there a dog in the picture?", "What colour is it?", "Where?"]
WIDE = torch.float64
NAMES = [*any_families.FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in any_families.SLOW)]
NARROW = (
    "qwen3_vl_moe", "qwen3_5_moe", "ernie4_5_vl_moe", "qwen3_5", "minicpmv4_6", "phi4_multimodal", "glm5_next",
    "glm4v_moe", "aria",
)  # fmt: skip


def agla(**knobs):
    return methods.AGLA(matcher=Brightness(), **({"beta": 0.05, "alpha": 1.0} | knobs))


@pytest.fixture(scope="module", params=NAMES)
def pair(request):
    try:
        model, processor = any_families.make(request.param, dtype=torch.float32 if request.param in NARROW else WIDE)
    except (AttributeError, KeyError, ImportError) as error:
        pytest.skip(f"not in this transformers, or a package is missing: {error}")
    yield guard(model, processor, agla())
    unguard(model)
    unguard(processor)


def inputs_of(pair, count=2, sizes=((96, 48), (56, 56)), **more):
    model, processor = pair
    family = model._lvlm_guard.family
    if family.model_type == "perception_lm":  # its processor can't batch pictures of unequal shapes
        sizes = sizes[:1] * 2
    prompts = [family.asked(processor, QUESTIONS[i % 3], 1) for i in range(count)]
    pictures = [tiny.picture(10 + i, *sizes[i % 2]) for i in range(count)]
    made = processor(images=[[p] for p in pictures], text=prompts, padding=True, return_tensors="pt", **more)
    return made.to(model.dtype)


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


# --- refusals


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
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PECULIAR)
def test_a_family_with_habits_of_its_own_is_proven_as_the_table_says(name):
    try:
        kind, told = prove_families.proved(name)
    except AttributeError as error:
        pytest.skip(f"not in this transformers: {error}")
    held, found = proofs.table()[kind]["proof"], told["proof"]
    assert [found[what] for what in ("way", "stacks", "alone", "crops", "hides")] == [
        held[what] for what in ("way", "stacks", "alone", "crops", "hides")
    ]


def test_tokens_that_a_model_rules_out_do_not_hide_what_another_picture_changes():
    least = torch.finfo(torch.float32).min
    plain, other = torch.tensor([[0.0, 1.0, 2.0, least]]), torch.tensor([[0.0, 1.0, 1.0, least]])
    assert trial._apart(other, plain) == pytest.approx(1.0)  # in spreads of what is left


def test_a_model_that_does_not_look_is_refused():
    model, processor = any_families.make("internvl")
    for weight in model.model.multi_modal_projector.parameters():
        weight.zero_()
    with pytest.raises(UnsupportedModelError, match="nothing to guard"):
        guard(model, processor, agla(), check="always")


def test_a_processor_without_pictures_is_refused():
    model, processor = any_families.make("internvl")
    with pytest.raises(UnsupportedModelError, match="the processor reads no pictures"):
        guard(model, processor.tokenizer, agla())


def test_a_second_view_of_another_layout_is_refused():
    pair = guard(*any_families.make("qwen3_vl"), agla())
    inputs = inputs_of(pair, guard_images=[tiny.picture(1, 48, 96), tiny.picture(2, 56, 56)])
    with pytest.raises(UnsupportedCallError, match="lays the second view out otherwise"):
        pair[0].generate(**inputs, **RUN, guard=agla(beta=0.0))


def test_a_template_of_text_alone_asks_for_the_question():
    model, processor = guard(*any_families.make("internvl"), agla())
    processor.chat_template = "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}"
    made = processor(images=tiny.picture(1), text="<IMG_CONTEXT>\nIs there a dog?", return_tensors="pt")
    with pytest.raises(TextError, match="does not read messages in parts"):
        model.generate(**made, **RUN)
    stated = processor(
        images=tiny.picture(1), text="<IMG_CONTEXT>\nIs there a dog?", guard_text="a dog", return_tensors="pt"
    )
    assert model.generate(**stated, **RUN).shape[0] == 1


def test_check_is_one_of_three():
    with pytest.raises(KnobError, match="'always', 'unknown' or 'never'"):
        guard(*any_families.make("internvl"), agla(), check="sometimes")


# --- what the proof is for


def blind(monkeypatch):
    """A branch keeps the call's own picture."""
    plain = Reader.opened
    monkeypatch.setattr(Reader, "opened", lambda self, branch, call, *rest: plain(
        self, dataclasses.replace(branch, pixels=lambda call: dict(call.tensors)), call, *rest
    ))  # fmt: skip


def without(*names):
    def control(monkeypatch):
        """A branch's calls lack some of generate()'s arguments."""
        plain = Reader.read

        def read(self, prepared, *rest):
            left = {key: value for key, value in prepared.arguments.items() if key not in names}
            return plain(self, prepared._replace(arguments=left), *rest)

        monkeypatch.setattr(Reader, "read", read)

    return control


@pytest.mark.parametrize(
    ("name", "control"),
    [
        ("internvl", blind), ("qwen3_vl", blind), ("gemma3", blind), ("paligemma", without("attention_mask")),
        ("qwen3_vl", without("position_ids")), ("paligemma", without("token_type_ids")),
    ],
)  # fmt: skip
def test_the_proof_catches_a_branch_that_lacks_something(name, control, monkeypatch):
    model, processor = any_families.make(name)
    family = Family.of(model, processor)
    assert trial.self_check(family, model, processor).error < 1e-6
    control(monkeypatch)
    with pytest.raises(UnsupportedModelError, match=r"are off by|fails inside the model"):
        trial.self_check(family, model, processor)


def test_rows_that_forget_a_state_are_not_offered(monkeypatch):
    model, processor = any_families.make("qwen3_5")
    plain = rows.states
    monkeypatch.setattr(
        rows, "states", lambda layer: (s for s in plain(layer) if s[0] is vars(layer))
    )  # keys and values alone: no dict of states
    found = trial.self_check(Family.of(model, processor), model, processor)
    assert not found.stacks
    model, processor = guard(model, processor, agla(), check="always")
    monkeypatch.undo()
    out = model.generate(
        **inputs_of((model, processor)), **RUN, guard_execution="batched", return_dict_in_generate=True
    )
    assert out.guard.execution == "lazy"
    assert any("not proven to stack" in note for note in out.guard.notes)


def test_tokens_that_show_other_places_than_the_map_says_are_found_out(monkeypatch):
    model, processor = any_families.make("internvl")
    assert trial.self_check(Family.of(model, processor), model, processor).hides
    plain = trial.token_relevance
    monkeypatch.setattr(trial, "token_relevance", lambda *these: [found.flip(0) for found in plain(*these)])
    found = trial.self_check(Family.of(model, processor), model, processor)
    assert not found.hides
    assert "of its image tokens show what their place" in found.why["hides"]


def test_a_branch_that_hides_too_little_is_found_out(monkeypatch):
    model, processor = any_families.make("qwen3_vl")
    plain = Hidden.__init__
    monkeypatch.setattr(Hidden, "__init__", lambda self, hides, *rest: plain(self, torch.zeros_like(hides), *rest))
    found = trial.self_check(Family.of(model, processor), model, processor)
    assert not found.hides
    assert "off by" in found.why["hides"]


@pytest.mark.parametrize("name", ["paligemma", "qwen3_5"])
def test_focus_is_refused_with_what_was_found_where_hiding_is_not_proven(name):
    model, processor = guard(*any_families.make(name), methods.Focus(matcher=Brightness()))
    found = proofs.table()[model.config.model_type]["proof"]
    assert not found["hides"]
    with pytest.raises(UnsupportedModelError) as raised:
        model.generate(**inputs_of((model, processor)), **RUN)
    assert found["why"]["hides"] in str(raised.value)
    assert "Use 'agla'" in str(raised.value)


def test_a_proof_that_offers_less_says_why():
    for kind, told in proofs.table().items():
        if "proof" in told:
            lacking = {what for what in ("stacks", "alone", "crops", "hides") if not told["proof"][what]}
            assert lacking == set(told["proof"]["why"]), kind
            if "methods" in told:  # asked of every method, one by one
                assert ("focus" in told["methods"]) == told["proof"]["hides"], kind
                assert not set(told["methods"]) & told["without"].keys(), kind


def test_a_proof_is_kept_by_class_configuration_type_and_kernel(monkeypatch, tmp_path):
    monkeypatch.setenv("LVLM_GUARD_CACHE", str(tmp_path))
    monkeypatch.setattr(proofs, "table", dict)
    checked = []
    plain = trial.self_check
    monkeypatch.setattr(trial, "self_check", lambda *these: checked.append(1) or plain(*these))
    pair = any_families.make("internvl")
    guard(*pair, agla())
    assert len(checked) == 1
    assert len(list(tmp_path.rglob("*.json"))) == 1
    guard(*any_families.make("internvl"), agla())
    assert len(checked) == 1
    guard(*any_families.make("internvl", attention="eager"), agla())
    assert len(checked) == 2
    guard(*any_families.make("internvl", dtype=torch.float64), agla())
    assert len(checked) == 3
    guard(*any_families.make("internvl"), agla(), check="always")
    assert len(checked) == 4
    model, _ = guard(*any_families.make("internvl"), agla(), check="never")
    assert len(checked) == 4
    assert not model._lvlm_guard.family.proof.stacks
