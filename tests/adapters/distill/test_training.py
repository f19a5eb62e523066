"""Training on tiny models: what learns, what does not, and that no end of a run loses anything."""

import json
import os
import signal
from contextlib import nullcontext
from dataclasses import replace

import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file

from lvlm_guard.adapters.distill import run
from lvlm_guard.adapters.distill.lessons import Answer, Lesson, Lessons, Pictures, Recipe
from lvlm_guard.adapters.distill.rows import Layout
from lvlm_guard.adapters.distill.training import log_probs, plain_log_probs, train
from lvlm_guard.adapters.errors import TrainingError
from lvlm_guard.adapters.training.recipe import Call, finish, last_checkpoint
from lvlm_guard.pretrained import load_model

RECIPE = Recipe(steps=9, batch=2, questions=2, rate=5e-3, rank=2, alpha=4, projector=True, save_every=3)
PICTURES = Pictures(tuple("012"), (), lambda name: tiny.picture(int(name)))


def answer(prompt, text, name=None, open_=True):
    tokens = [5 + ord(c) % 200 for c in text] + [2]
    soft = [([tokens[0], 9], [0.75, 0.25])] if open_ else []
    return Answer(prompt, name, None, tokens, text, [0] if open_ else [], [], soft)


LINES = [
    Lesson(
        name,
        [
            answer("Describe it.", f"a dog {name}"),
            answer("Is there a dog?", "yes", "dog"),
            answer("Is there a cat?", "no", "cat", open_=False),
        ],
    ).line()
    for name in PICTURES.learnt
]


def quiet(_):
    pass


def trained(folder, recipe=RECIPE, seed=0, advance=quiet, lines=LINES, family="llava"):
    model, processor = tiny.make(family, torch.float32)
    return train(model, processor, lines, PICTURES, recipe, seed, folder, advance), processor


def weights(student):
    return {name: tensor.clone() for name, tensor in peft.get_peft_model_state_dict(student).items()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    student, processor = trained(folder)
    return folder, weights(student), student, processor


def test_every_matrix_of_the_adapter_learns_and_nothing_else_changes_by_a_bit(unbroken):
    _, learnt, student, _ = unbroken
    assert all(bool(tensor.any()) for tensor in learnt.values())  # B begins at zero
    assert {name.rpartition("lora_")[2][0] for name in learnt} == {"A", "B"}
    before = tiny.make("llava", torch.float32)[0].state_dict()
    after = {
        name.replace("base_model.model.", "").replace(".base_layer", ""): tensor
        for name, tensor in student.state_dict().items()
        if "lora_" not in name
    }
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_the_student_comes_nearer_to_its_teacher(tmp_path):
    longer = replace(RECIPE, steps=30)
    trained(tmp_path, longer)
    lines = map(json.loads, (tmp_path / "training" / "curve.jsonl").read_text().splitlines())
    curve = [entry["loss"] for entry in lines if "loss" in entry]
    assert len(curve) == 3
    assert curve[-1] < 0.7 * curve[0]


@pytest.mark.slow
def test_killed_between_checkpoints_and_resumed_it_ends_in_the_weights_of_an_unbroken_run(unbroken, tmp_path):
    done = []

    def dies(count):
        done.append(count)
        if sum(done) == 5:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        trained(tmp_path, advance=dies)
    assert last_checkpoint(tmp_path / "training").name == "checkpoint-3"
    assert not (tmp_path / "adapter_config.json").exists()
    steps = []
    student, _ = trained(tmp_path, advance=steps.append)
    assert steps[0] == 3
    assert sum(steps) == RECIPE.steps
    found = weights(student)
    assert all(torch.equal(found[name], tensor) for name, tensor in unbroken[1].items())


@pytest.mark.slow
def test_a_checkpoint_that_was_not_written_whole_is_passed_over(unbroken, tmp_path):
    done = []

    def dies(count):
        done.append(count)
        if sum(done) == 7:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        trained(tmp_path, advance=dies)
    (tmp_path / "training" / "checkpoint-6" / "trainer_state.json").unlink()
    (tmp_path / "training" / "checkpoint-6" / "optimizer.pt").write_bytes(b"half")
    student, _ = trained(tmp_path)
    found = weights(student)
    assert all(torch.equal(found[name], tensor) for name, tensor in unbroken[1].items())


@pytest.mark.slow
def test_ctrl_c_ends_the_step_saves_it_and_the_next_call_goes_on(unbroken, tmp_path):
    done = []

    def interrupts(count):
        done.append(count)
        if sum(done) == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, advance=interrupts)
    assert int(last_checkpoint(tmp_path / "training").name.partition("-")[2]) in (4, 5)
    student, _ = trained(tmp_path)
    found = weights(student)
    assert all(torch.equal(found[name], tensor) for name, tensor in unbroken[1].items())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_one_seed_gives_one_adapter_and_another_seed_another(unbroken, tmp_path):
    same, other = (weights(trained(tmp_path / str(seed), seed=seed)[0]) for seed in (0, 1))
    assert all(torch.equal(same[name], tensor) for name, tensor in unbroken[1].items())
    assert not any(torch.equal(other[name], tensor) for name, tensor in unbroken[1].items())


def test_the_folder_is_a_stock_adapter_that_gives_the_same_logits_loaded_merged_and_off(unbroken):
    folder, _, student, processor = unbroken
    rows = Layout(student, processor).rows([(tiny.picture(5), Lesson.of(LINES[0]).answers)])
    with torch.no_grad():
        expected, plain = log_probs(student, rows), plain_log_probs(student, rows)
        loaded = peft.PeftModel.from_pretrained(tiny.make("llava", torch.float32)[0], folder).eval()
        assert torch.equal(log_probs(loaded, rows), expected)
        assert torch.equal(log_probs(tiny.make("llava", torch.float32)[0], rows), plain)
        torch.testing.assert_close(log_probs(loaded.merge_and_unload(), rows), expected, rtol=0, atol=1e-3)
    assert float((expected - plain).abs().max()) > 0.05


def test_a_finished_adapter_is_loaded_and_not_trained_again(unbroken):
    folder, learnt, _, _ = unbroken
    before = (folder / "adapter_model.safetensors").stat().st_mtime_ns
    steps = []
    found = weights(trained(folder, advance=steps.append)[0])
    assert steps == [RECIPE.steps]
    assert (folder / "adapter_model.safetensors").stat().st_mtime_ns == before
    assert all(torch.equal(found[name], tensor) for name, tensor in learnt.items())


def test_another_recipe_in_the_same_folder_is_refused_with_what_differs(unbroken):
    with pytest.raises(TrainingError, match=r"rate 0\.005, now 0\.01.*--retrain"):
        trained(unbroken[0], replace(RECIPE, rate=0.01))


def test_training_anew_drops_no_training_of_another_command_below_the_folder(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "load_model", stopped)
    own, other = tmp_path / "training", tmp_path / "ranker" / "training"
    for place in (own, other):
        finish(place, {}, {}, ())
    call = Call(tmp_path, (0,), "cpu", False, quiet, lambda *_: nullcontext(quiet))
    with pytest.raises(KeyboardInterrupt):
        run.distill(Lessons(pictures=2, held_out=1), RECIPE, call, retrain=True)
    assert (own.exists(), other.exists()) == (False, True)


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_lost(tmp_path):
    wild = replace(RECIPE, rate=1e30, steps=60)
    with pytest.raises(TrainingError, match=r"(loss|gradient) is NaN or infinite at step \d+.*--retrain"):
        trained(tmp_path, wild)
    last = last_checkpoint(tmp_path / "training")
    if last is not None:
        assert all(bool(torch.isfinite(tensor).all()) for tensor in load_file(last / "learning.safetensors").values())
    assert not (tmp_path / "adapter_model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl", "instructblip"])
def test_every_family_learns(family, tmp_path):
    short = replace(RECIPE, steps=2, save_every=2)
    student, _ = trained(tmp_path, short, family=family)
    assert all(bool(tensor.any()) for tensor in weights(student).values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"soft": False}, {"keep": False}, {"accumulate": 2}, {"projector": False}, {"questions": 0}]
)
def test_every_option_trains_and_changes_what_is_learnt(options, unbroken, tmp_path):
    found = weights(trained(tmp_path, replace(RECIPE, **options))[0])
    known = unbroken[1]
    assert found.keys() <= known.keys()
    assert any(not torch.equal(found[name], known[name]) for name in found)


@pytest.mark.slow
def test_recomputed_activations_give_nearly_the_same_adapter(unbroken, tmp_path):
    found = weights(trained(tmp_path, replace(RECIPE, checkpointing=True))[0])
    for name, tensor in unbroken[1].items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"batch": 0}, {"rate": 0.0}, {"rate": float("nan")}, {"questions": -1}]
)
def test_recipes_that_make_no_sense_are_refused(wrong):
    with pytest.raises(TrainingError):
        replace(RECIPE, **wrong)


def test_the_embedded_models_adapter_has_the_size_that_was_stated():
    from lvlm_guard.adapters.distill.training import target_modules

    model, _ = load_model()
    config = peft.LoraConfig(r=16, target_modules=target_modules(model, projector=True))
    wrapped = peft.get_peft_model(model, config)
    assert sum(p.numel() for p in wrapped.parameters() if p.requires_grad) == 126_464
