"""What the proof of a model is for: each thing that a branch may lack is found out, and what it offers less is said."""

import dataclasses

import any_families
import pytest
import torch
from family_asking import RUN, agla, inputs_of
from matchers import Brightness

from lvlm_guard import guard, methods
from lvlm_guard.engine import rows
from lvlm_guard.engine.hiding import Hidden
from lvlm_guard.engine.reading import Reader
from lvlm_guard.errors import KnobError, UnsupportedModelError
from lvlm_guard.families.family import Family
from lvlm_guard.proving import proofs, trial


def test_tokens_that_a_model_rules_out_do_not_hide_what_another_picture_changes():
    least = torch.finfo(torch.float32).min
    plain, other = torch.tensor([[0.0, 1.0, 2.0, least]]), torch.tensor([[0.0, 1.0, 1.0, least]])
    assert trial._apart(other, plain) == pytest.approx(1.0)  # in spreads of what is left


def test_check_is_one_of_three():
    with pytest.raises(KnobError, match="'always', 'unknown' or 'never'"):
        guard(*any_families.make("internvl"), agla(), check="sometimes")


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
