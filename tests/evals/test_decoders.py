"""The decoders of a run: what each stands for, what it is held against, and which controls no table lacks."""

import json
from dataclasses import replace

import pytest
import tiny
from drawn_statistics import drawn
from matchers import Brightness

from lvlm_guard import guard, methods
from lvlm_guard.errors import KnobError, UnknownNameError
from lvlm_guard.evals.decoders.decoder import Decoder
from lvlm_guard.evals.decoders.lineup import decoders_of, left_out, understood
from lvlm_guard.evals.decoders.matchers import RandomMap
from lvlm_guard.evals.infer.generate import Asker, prepare, prepare_run
from lvlm_guard.evals.spec.answers import ROLES
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.pretrained import load_model


def lineup(matcher=True, **settings):
    found = decoders_of(Settings(**settings), Brightness() if matcher else None)
    assert len({d.name for d in found}) == len(found)
    return {d.name: d for d in found}


def test_every_table_has_plain_decoding_cuts_prompts_and_moved_thresholds_beside_the_methods():
    found = lineup()
    assert {name: (d.role, d.baseline, d.control_of, d.seeds, d.sampled) for name, d in found.items()} == {
        "greedy": ("reference", None, None, 1, False),
        "sample": ("plain", "greedy", None, 3, True),
        "sample-matched": ("control", "sample", None, 3, True),
        "apc(0.5)": ("control", "sample", None, 3, True),
        "apc(0.1)": ("control", "sample", None, 3, True),
        "prompt-yes": ("control", "greedy", None, 1, False),
        "prompt-no": ("control", "greedy", None, 1, False),
        "tilt": ("control", "greedy", None, 1, False),
        "olm": ("control", "greedy", None, 1, False),
        "agla": ("method", "greedy", None, 1, False),
        "agla-sample": ("method", "sample", None, 3, True),
        "agla-random": ("control", "greedy", "agla", 3, False),
        "focus": ("method", "greedy", None, 1, False),
        "focus-random": ("control", "greedy", "focus", 3, False),
        "vote": ("method", "greedy", None, 1, False),
        "matcher": ("matcher", "greedy", "vote", 1, False),
        "vcd": ("method", "greedy", None, 1, False),
    }
    assert {d.role for d in found.values()} < set(ROLES)


def test_a_combination_is_a_method_and_takes_the_knobs_of_its_parts():
    found = lineup(methods=("agla+rudder", "rudder"), knobs={"agla": {"alpha": 1.5}})
    (both,) = found["agla+rudder"].runs
    assert [part.name for part in both.parts] == ["agla", "rudder"]
    assert both.parts[0].alpha == 1.5
    with pytest.raises(KnobError, match="vcd"):
        lineup(methods=("agla+rudder",), knobs={"vcd": {"alpha": 1.5}})


def test_a_combination_stands_beside_the_controls_of_the_part_that_assembles():
    alone, found = lineup(methods=("agla",)), lineup(methods=("agla+rudder",))
    assert {name.replace("agla", "agla+rudder") for name in alone} == set(found)
    control = found["agla+rudder-random"]
    assert [run.assembling.matcher.seed for run in control.runs] == [0, 1, 2]
    assert all([part.name for part in run.parts] == ["agla", "rudder"] for run in control.runs)
    assert found["apc(0.5)"].guard(0).beta == 0.5
    only = lineup(methods=("agla+rudder-random",), controls=False)
    assert set(only) == {"greedy", "agla+rudder", "agla+rudder-random"}
    swept = lineup(methods=("agla+rudder",), sweep={"alpha": (1.0, 2.0)}, split="val")
    assert [run.assembling.alpha for d in swept.values() if d.point for run in d.runs] == [1.0, 2.0]
    with pytest.raises(KnobError, match="by --knob and by --matcher"):
        lineup(methods=("agla+rudder",), knobs={"agla": {"matcher": "clip"}}, matchers={"blip-itm": ("blip-itm",)})


def test_a_cut_alone_is_sampled_for_each_cut_of_the_run_s_methods():
    # the first method's cut stood for all of them once, as if it were AGLA's
    found = lineup(methods=("vcd", "agla"), knobs={"vcd": {"beta": 0.2}})
    cuts = {name: d.guard(0) for name, d in found.items() if d.method == "apc"}
    assert cuts == {"apc(0.2)": methods.APC(beta=0.2), "apc(0.5)": methods.APC(beta=0.5)}
    assert all(found[name].knobs == {"beta": cut.beta} for name, cut in cuts.items())
    assert not [d for d in lineup(methods=("vcd",), knobs={"vcd": {"beta": 0.0}}).values() if d.method == "apc"]
    only = lineup(methods=("apc",), knobs={"apc": {"beta": 0.3}}, controls=False)
    assert [(d.name, d.role) for d in only.values()] == [("greedy", "reference"), ("apc(0.3)", "control")]


def test_each_temperature_that_is_as_sharp_as_a_method_is_sampled_once(monkeypatch):
    monkeypatch.setattr(methods.VCD, "matched_temperature", lambda self: 0.5)
    found = lineup(methods=("agla", "vcd"))
    matched = {name: d.options["temperature"] for name, d in found.items() if name.startswith("sample-matched")}
    assert matched == {"sample-matched(0.33)": pytest.approx(1 / 3), "sample-matched(0.5)": 0.5}
    monkeypatch.setattr(methods.VCD, "matched_temperature", lambda self: 1 / 3)
    assert lineup(methods=("agla", "vcd"))["sample-matched"].about.endswith("as sharp as agla, vcd")


def test_what_only_answers_questions_is_known_from_its_role_and_not_from_its_name():
    found = lineup()
    assert {name for name, d in found.items() if not d.suits("chair")} == {
        "prompt-yes", "prompt-no", "tilt", "olm", "matcher",
    }  # fmt: skip
    assert all(d.suits("pope") and d.suits("mme") for d in found.values())
    assert {name: d.derive for name, d in found.items() if d.derive} == {"tilt": "tilt", "olm": "olm"}


def test_a_decoder_describes_itself_as_json():
    for d in lineup(methods=("vote",), sweep={"lam": (0.5, 1.0)}, split="val").values():
        told = json.loads(json.dumps(d.describe()))
        assert (told["name"], told["role"], told["baseline"]) == (d.name, d.role, d.baseline)
        assert told["point"] == dict(d.point)
        assert told["yes_no_only"] is not d.suits("chair")
    assert told["point"] == {"lam": 1.0}


@pytest.mark.parametrize("words", ["talk", "prompt", "plain text"])
def test_a_prompt_control_says_its_sentence_after_the_prompt_and_a_blank(words):
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "Is it?"}, {"type": "image", "image": "x"}]},
    ]
    if words == "plain text":
        messages[1]["content"] = "Is it?"
    item = Item("0", "0", "Is it?", (), talk=None if words == "prompt" else lambda: messages)
    found = lineup()
    asked = found["prompt-no"].worded(item)
    assert asked.prompt == "Is it? Answer no whenever possible."
    assert found["greedy"].worded(item) is item
    told = asked.conversation()[-1]["content"]
    if words == "plain text":
        assert told == asked.prompt
    else:
        assert [part["text"] for part in told if part["type"] == "text"] == [asked.prompt]
    assert "whenever" not in str(messages)


def test_a_model_is_not_told_what_its_vocabulary_has_no_words_for():
    found = list(lineup().values())
    flags = understood(found, load_model()[1].tokenizer)[1]
    assert [flag.split()[0] for flag in flags] == ["prompt-yes", "prompt-no"]
    assert 'lacks words of "Answer no whenever possible."' in flags[1]
    kept, flags = understood(found, tiny.make("llava")[1].tokenizer)
    assert (kept, flags) == (found, [])
    assert [d.name for d in prepare_run(Settings(limit=1, captions=1)).decoders if d.prompt_suffix] == []


def test_a_prompt_control_is_greedy_plain_decoding_of_the_longer_prompt():
    model, processor = guard(*tiny.make("llava"))
    item = Item("0", "0", "Is there a dog?", (tiny.picture(3),))
    decoders = {name: d for name, d in lineup().items() if d.role in ("reference", "control")}
    asker = Asker(model, processor, None, decoders)
    task = EvalTask("t", "pope", [item], 8)
    (yes,), (no,), (plain,) = asker.ask(task, [item], [("prompt-yes", 0), ("prompt-no", 0), ("greedy", 0)])
    for one, words in ((yes, " Answer yes whenever possible."), (no, " Answer no whenever possible."), (plain, "")):
        inputs = prepare(processor, [replace(item, prompt=item.prompt + words)]).to(model.dtype)
        out = model.generate(**inputs, guard=False, max_new_tokens=8, do_sample=False)
        assert one.text == processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert len({yes.text, no.text, plain.text}) == 3


def test_all_stands_for_every_method_that_is_no_experiment(monkeypatch):
    compared = {d.method for d in lineup(methods=("all",), controls=False).values()} - {None}
    kinds = {name: methods.REGISTRY.get(name) for name in methods.REGISTRY.names() if name != "apc"}
    left_out = {name for name, kind in kinds.items() if kind.experimental or kind.parity or kind.needs_statistics}
    assert compared == kinds.keys() - left_out
    assert {"vga", "agla-official"} <= left_out
    monkeypatch.setattr(methods.VCD, "experimental", True, raising=False)
    assert {d.method for d in lineup(methods=("all",), controls=False).values()} == compared - {"vcd"} | {None}


def test_a_method_without_its_statistics_is_left_out_of_all_and_refused_by_name(tmp_path):
    model, _ = tiny.make("llava")
    file = tmp_path / "revis.safetensors"
    drawn("revis", model).save(file)
    (sentence,) = [told for told in left_out(Settings(methods=("all",))) if told.startswith("revis")]
    assert "lvlm-guard calibrate revis" in sentence
    assert left_out(Settings(methods=("agla",))) == []
    given = {"revis": {"statistics": str(file)}}
    found = lineup(methods=("all",), knobs=given, controls=False)["revis"]
    assert found.describe()["knobs"]["statistics"] == f"revis.safetensors:{drawn('revis', model).digest}"
    assert not [told for told in left_out(Settings(methods=("all",), knobs=given)) if told.startswith("revis")]
    with pytest.raises(KnobError, match=r"--knob revis\.statistics="):
        lineup(methods=("revis",))


def test_controls_can_be_asked_for_one_by_one():
    found = lineup(methods=("vcd", "sample", "prompt-no", "tilt", "matcher", "agla-random"), controls=False)
    assert list(found) == ["greedy", "sample", "prompt-no", "tilt", "vcd", "agla", "agla-random", "matcher"]
    assert "agla-sample" in lineup(methods=("agla-sample",), controls=False)


def test_a_random_map_takes_the_method_s_own_matcher_and_a_seed():
    control = lineup(methods=("agla",))["agla-random"]
    maps = [control.guard(seed).matcher for seed in (0, 1)]
    assert all(isinstance(one, RandomMap) and isinstance(one.matcher, Brightness) for one in maps)
    assert [one.seed for one in maps] == [0, 1]
    assert "agla-random" not in lineup(matcher=False, methods=("agla",))


def test_a_sweep_runs_a_method_at_every_point_and_no_point_has_controls_of_its_own():
    found = lineup(methods=("agla", "vcd"), sweep={"alpha": (1.0, 2.0), "noise_step": (500,)}, split="val")
    points = {name: d.point for name, d in found.items() if d.point}
    assert points == {
        "agla[alpha=1]": {"alpha": 1.0},
        "agla[alpha=2]": {"alpha": 2.0},
        "vcd[alpha=1,noise_step=500]": {"alpha": 1.0, "noise_step": 500},
        "vcd[alpha=2,noise_step=500]": {"alpha": 2.0, "noise_step": 500},
    }
    assert found["agla[alpha=1]"].guard(0) == methods.AGLA(alpha=1.0)
    assert not [d for d in found.values() if d.control_of]


def test_the_paper_s_preset_samples_every_method():
    found = lineup(preset="paper-agla", controls=False)
    assert {"agla-sample", "vote-sample", "vcd-sample"} < found.keys()


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"methods": ("alga",)}, UnknownNameError, "Did you mean 'agla'"),
        ({"methods": ("agla-simple",)}, UnknownNameError, "No method is called 'agla-simple'"),
        ({"knobs": {"apc": {"beta": 0.1}}}, KnobError, "none of the methods of this run"),
        ({"sweep": {"gamma": (1,)}, "split": "val"}, KnobError, "has a knob 'gamma' to sweep"),
        ({"adapters": ("tilt=x",)}, KnobError, "is a decoder's name already"),
    ],
)
def test_what_no_method_is_or_has_is_refused(changes, error, said):
    with pytest.raises(error, match=said):
        lineup(**changes)


def test_a_run_of_one_training_still_draws_what_is_random_for_each_seed():
    found = lineup(methods=("agla",), seeds=5)
    assert (found["agla-sample"].seeds, found["agla-random"].seeds, found["agla"].seeds) == (5, 5, 1)
    own = Decoder("x", "x", (False,))
    assert replace(own, options={"do_sample": True}).sampled
