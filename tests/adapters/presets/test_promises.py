"""Every preset keeps the promises of an adapter, on a tiny random CLIP."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from preset_facts import THINGS
from transformers import CLIPModel

from lvlm_guard.adapters.matchers.clip import ClipMatcher
from lvlm_guard.adapters.presets import PRESETS
from lvlm_guard.adapters.training import dual_prompt
from lvlm_guard.adapters.training.free import adapted
from lvlm_guard.adapters.training.trainer import learning

TRAINED = [name for name, preset in PRESETS.items() if not preset.plan.free]
FREE = [name for name, preset in PRESETS.items() if preset.plan.free]


def features(task, clip=None):
    model = task.model.clip if clip is None else clip
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    texts = task.retriever.text_inputs(["a red dog", "a blue cat"])
    pixels = task.pixels(["0.png", "9.png"])
    with torch.no_grad():
        said = base.get_text_features(input_ids=texts.input_ids, attention_mask=texts.attention_mask)
        return said.pooler_output, base.get_image_features(pixel_values=pixels).pooler_output


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_reach_every_learnable_tensor_and_nothing_else(name, trained):
    task = trained(name)
    for parameter, value in task.model.named_parameters():
        if value.requires_grad:
            assert value.grad is not None, parameter
            assert value.grad.isfinite().all(), parameter
            assert value.grad.abs().max() > 0, parameter
        else:
            assert value.grad is None, parameter


@pytest.mark.parametrize("name", TRAINED)
def test_off_is_plain_clip_bit_for_bit_and_on_is_not(name, trained, clip):
    task = trained(name)
    plain = features(task, CLIPModel.from_pretrained(clip).eval())
    with task.model.clip.disable_adapter():
        off = features(task)
    assert all(torch.equal(a, b) for a, b in zip(off, plain, strict=True))
    on = features(task)
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(on, plain, strict=True))
    bare = copy.deepcopy(task.model.clip).unload()
    assert all(torch.equal(a, b) for a, b in zip(features(task, bare), plain, strict=True))


@pytest.mark.parametrize("name", TRAINED)
def test_two_forwards_agree_and_change_no_tensor_and_a_caption_does_not_depend_on_its_batch(name, trained):
    task = trained(name)
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    first, second = features(task), features(task)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(before[key], value) for key, value in task.model.state_dict().items())
    alone = task.retriever.text_features(["a blue cat"])
    torch.testing.assert_close(alone, task.retriever.text_features(["a red dog", "a blue cat"])[1:], atol=1e-5, rtol=0)
    picture = task.pixels(["9.png"])
    both = task.model.encode_image(task.pixels(["0.png", "9.png"]))
    torch.testing.assert_close(task.model.encode_image(picture), both[1:], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_peft_alone_restores_every_preset_in_a_new_process(trained, clip, tmp_path):
    for name in TRAINED:
        task = trained(name)
        task.model.clip.save_pretrained(tmp_path / name)
        texts = task.retriever.text_inputs(["a red dog", "a blue cat"])
        pixels = task.pixels(["0.png", "9.png"])
        torch.save(
            {"ids": texts.input_ids, "mask": texts.attention_mask, "pixels": pixels, "expected": features(task)},
            tmp_path / name / "batch.pt",
        )
    script = """
import copy, sys, torch, lvlm_guard.adapters
from pathlib import Path
from peft import PeftModel
from transformers import CLIPModel
torch.set_num_threads(int(sys.argv[3]))
plain = CLIPModel.from_pretrained(sys.argv[1])
for place in sorted(Path(sys.argv[2]).iterdir()):
    told = torch.load(place / "batch.pt")
    model = PeftModel.from_pretrained(copy.deepcopy(plain), str(place)).get_base_model().eval()
    with torch.no_grad():
        text = model.get_text_features(input_ids=told["ids"], attention_mask=told["mask"]).pooler_output
        image = model.get_image_features(pixel_values=told["pixels"]).pooler_output
    pairs = zip((text, image), told["expected"])
    same = all(torch.allclose(a, b, rtol=0, atol=1e-5) for a, b in pairs)  # memory is laid out otherwise there
    print(place.name, "same" if same else "OTHER")
"""
    call = [sys.executable, "-c", script, clip, str(tmp_path), str(torch.get_num_threads())]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(f"{name} same" for name in TRAINED)


@pytest.mark.parametrize("name", FREE)
def test_what_needs_no_training_changes_claims_alone_is_restored_and_off_is_plain_clip(name, clip, pictures, tmp_path):
    plan = replace(PRESETS[name].plan, clip=clip, proposer="printf 'red {object}\\nnonsense\\nthe small {object}\\n'")
    plan = replace(plan, search={**plan.search, "budget": 12} if plan.search else {})
    if plan.free == "pairs":
        said = {f"{a}|{b}": [{"a": f"a red {a}", "b": f"a blue {b}"}] for a in THINGS for b in THINGS if a < b}
        (tmp_path / "bank.json").write_text(json.dumps({"classes": {}, "pairs": said}))
        plan = replace(plan, bank=str(tmp_path / "bank.json"))
    made = dual_prompt.build(plan, pictures)
    found = adapted(plan, pictures, made, seed=0)
    assert found
    assert not learning(made.model)
    plain = dual_prompt.untuned(clip)
    texts, claims = ["a red dog", "a blue cat"], ["a photo of a dog", "a photo of a cat", "a photo of a bus"]
    image = pictures.frozen(pictures.train.images)
    assert torch.equal(made.cosines(image, texts), plain.cosines(image, texts))
    pixels = partial(pictures.pixels, pictures.train.images)
    changed = made.cosines(image, claims, pixels=pixels)
    assert changed.isfinite().all()
    searched = "prompt" in found and found["prompt"] == "a photo of {article} {object}"
    assert searched or not torch.allclose(changed, plain.cosines(image, claims), atol=1e-4)
    assert torch.equal(changed, made.cosines(image, claims, pixels=pixels))
    made.save_pretrained(tmp_path)
    again = dual_prompt.DualPromptRetriever.from_pretrained(tmp_path)
    torch.testing.assert_close(again.cosines(image, claims, pixels=pixels), changed)
    bare = replace(again.card, templates=(), sentences={})
    again.card, again.memory = bare, None
    assert torch.equal(again.cosines(image, claims), plain.cosines(image, claims))


@pytest.mark.parametrize("name", ["hicropl", "damvp", "task_mutual", "multilane", "promptcam", "tcpa", "difftpt"])
def test_a_preset_is_a_matcher_whose_map_is_its_own(name, clip, pictures):
    plan = replace(PRESETS[name].plan, clip=clip)
    made = dual_prompt.build(plan, pictures)
    if plan.free:
        adapted(plan, pictures, made, seed=0)
    made.card = replace(made.card, calibration=(10.0, 0.0))
    matcher = ClipMatcher(made)
    images = [pictures.train.load(key) for key in pictures.train.images[:2]]
    claims = ["a photo of a dog", "a photo of a cat"]
    first, second = matcher([images[0]] * 2, claims)
    assert first.relevance.isfinite().all()
    support = matcher.support(images[0], claims)
    torch.testing.assert_close(support, torch.tensor([first.score, second.score]), atol=1e-4, rtol=0)
    if name == "promptcam":
        said = made.text_features(claims)
        pixels = made.image_inputs(images)
        shown = matcher._shown(pixels, said, claims)[2]
        torch.testing.assert_close(shown.sum(-1), torch.ones(2))
        other = matcher._shown(pixels, said.flip(0), claims[::-1])[2]
        assert not torch.allclose(shown, other)


def test_every_preset_names_its_work_and_what_it_lacks():
    for name, preset in PRESETS.items():
        assert preset.paper, name
        assert len(preset.identifier) == 10, name
        assert preset.piece, name
        assert Path(name).name == name
