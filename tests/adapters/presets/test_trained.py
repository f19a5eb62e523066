"""What single presets that are trained do beside the promises of all."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny_clip
import torch
from in_memory import InMemory
from PIL import Image
from preset_facts import THINGS
from safetensors.torch import load_file
from torch import nn

from lvlm_guard.adapters.data.dataset import FactsData
from lvlm_guard.adapters.data.facts import CaptionRow, Facts
from lvlm_guard.adapters.losses import LossStack
from lvlm_guard.adapters.presets import PRESETS
from lvlm_guard.adapters.terms import regulated
from lvlm_guard.adapters.training import dual_prompt
from lvlm_guard.adapters.training.pairs import Teacher
from lvlm_guard.adapters.training.recipe import Recipe
from lvlm_guard.adapters.training.retrieval import RetrievalTask
from lvlm_guard.adapters.training.trainer import learning
from lvlm_guard.errors import WeightsError


def test_a_mean_of_adapters_is_started_from_and_other_prompts_are_refused(clip, pictures, tmp_path):
    plan = replace(PRESETS["mvlpt"].plan, clip=clip)
    torch.manual_seed(1)
    sources = [dual_prompt.build(plan, pictures) for _ in range(2)]
    for k, source in enumerate(sources):
        source.save_pretrained(tmp_path / str(k))
    made = dual_prompt.build(replace(plan, init=(str(tmp_path / "0"), str(tmp_path / "1"))), pictures)
    first, second, mean = (learning(one.model) for one in (*sources, made))
    assert mean
    for name, value in mean.items():
        torch.testing.assert_close(value, (first[name] + second[name]) / 2)
    with pytest.raises(WeightsError, match="other prompts"):
        dual_prompt.build(replace(PRESETS["maple"].plan, clip=clip, init=(str(tmp_path / "0"),)), pictures)
    with pytest.raises(WeightsError, match="no adapter"):
        dual_prompt.build(replace(plan, init=(str(tmp_path / "nowhere"),)), pictures)


def test_what_was_meta_learnt_starts_plain_prompts_and_its_step_is_that_of_sgd_without_a_gate(
    clip, pictures, trained, tmp_path
):
    task = trained("gram")
    task.model.clip.save_pretrained(tmp_path)
    plan = replace(PRESETS["mvlpt"].plan, clip=clip, init=(str(tmp_path),))
    made, source = learning(dual_prompt.build(plan, pictures).model), learning(task.model)
    assert made
    assert all(torch.equal(value, source[name]) for name, value in made.items())
    # no inner step: the loss of the other half
    batch = task.batches.batch(0)
    own = task.batches.recipe
    plain = task.loss(task.model, batch.after)[0]
    task.batches.recipe = replace(own, rate=1e-30)
    try:
        torch.testing.assert_close(task.loss(task.model, batch)[0], plain)
    finally:
        task.batches.recipe = own
    assert not torch.isclose(task.loss(task.model, batch)[0], plain, rtol=1e-6)
    slope, start = torch.randn(4, 24), nn.Parameter(torch.randn(4, 24))
    stepped = start.detach() - 0.1 * regulated(slope)
    start.grad = slope
    torch.optim.SGD([start], lr=0.1).step()
    torch.testing.assert_close(stepped, start.detach())
    torch.testing.assert_close(regulated(slope, torch.zeros(24, 24)), slope / 2)


def fitted(name, clip, pictures, place, **changed):
    plan = replace(PRESETS[name].plan, clip=clip, **changed)
    plan = replace(plan, losses=replace(plan.losses, claims=1.0))
    recipe = Recipe(steps=4, batch=8, rate=1e-2, measure_every=4, precision="float32")
    return dual_prompt.fit(plan, pictures, recipe, place, lambda _: None, device="cpu")


@pytest.fixture
def anything_goes(monkeypatch):
    """Four steps on random pictures help none: what comes of them is kept all the same."""
    monkeypatch.setattr("lvlm_guard.adapters.training.retrieval.selected", lambda candidates: candidates[-1])


@pytest.mark.slow
def test_a_cascade_trains_its_first_stage_on_a_larger_clip_and_leaves_it_alone_in_the_second(
    clip, pictures, tmp_path, anything_goes
):
    larger = tmp_path / "larger"
    for part in (tiny_clip.clip(layers=4, seed=1), tiny_clip.tokenizer(), tiny_clip.image_processor()):
        part.save_pretrained(larger)
    made = fitted("caspl", clip, pictures, tmp_path / "out", teacher=str(larger))
    assert made.config.vision_slots == 12
    first = tmp_path / "out" / "training" / "first"
    stage, after = (load_file(place / "adapter_model.safetensors") for place in (first, tmp_path / "out"))
    for side in ("text", "vision"):
        boosted = next(value for key, value in after.items() if "_made" in key and key.endswith(side))
        assert torch.equal(boosted, torch.stack([stage[key] for key in sorted(stage) if f"{side}_model" in key]))
    plan = replace(PRESETS["caspl"].plan, clip=clip, init=(str(first),))  # a stage that was trained elsewhere
    begun = dual_prompt.build(plan, pictures).model.state_dict()
    assert torch.equal(next(value for key, value in begun.items() if "_made" in key and key.endswith(side)), boosted)
    with pytest.raises(WeightsError, match="other prompts"):
        dual_prompt.build(replace(plan, init=(str(tmp_path / "out"),)), pictures)
    told, images = dual_prompt.untuned(larger), ["0.png", "1.png"]
    logits = Teacher.of(told, pictures.train).logits(images, ["a red dog"])
    expected = told.score([pictures.train.load(image) for image in images], ["a red dog"]) / told.model.tau
    torch.testing.assert_close(logits, expected)


@pytest.mark.slow
def test_what_terms_learn_beside_the_prompts_is_dropped_and_a_text_is_told_to_be_visual(
    clip, pictures, tmp_path, anything_goes
):
    made = fitted("visualness", clip, pictures, tmp_path / "v")
    again = dual_prompt.DualPromptRetriever.from_pretrained(tmp_path / "v")
    texts = ["a red bus", "in my opinion"]
    torch.testing.assert_close(again.visualness(texts), made.visualness(texts))
    claims = ["a photo of a dog", "a photo of a cat"]
    image = pictures.frozen(pictures.train.images)
    assert torch.equal(made.cosines(image, claims), image @ made.text_features(claims).T)
    assert dual_prompt.untuned(clip).visualness(texts).tolist() == [1.0, 0.0]
    kept = fitted("lapt", clip, pictures, tmp_path / "l")
    told = json.loads((tmp_path / "l" / "training" / "training.json").read_text())
    assert (kept.memory is not None) == told["found"]["beside"]
    assert told["parameters"] == sum(value.numel() for value in learning(kept.model).values())
    assert not hasattr(kept.model, "aids")


def test_prompts_with_proxies_bring_pictures_of_one_class_nearer_to_each_other(clip):
    rng, shown, facts = np.random.default_rng(0), {}, []
    for k in range(24):
        # what a picture shows is a colour's faint share of noise
        colour = np.eye(3)[k % 3] * 60
        shown[f"{k}.png"] = Image.fromarray((rng.integers(0, 190, (32, 32, 3)) + colour).astype(np.uint8))
        objects = {name: float(name == THINGS[k % 3]) for name in THINGS[:3]}
        said = CaptionRow(f"{k}.png", f"a {THINGS[k % 3]}", category=THINGS[k % 3], split="train")
        facts.append(Facts(f"{k}.png", captions=(said,), objects=objects, split="train" if k < 20 else "val"))
    data = FactsData(tuple(facts), InMemory(shown), "colours", exhaustive=THINGS[:3])
    read = dual_prompt.Pictures.read(data.captions, clip)
    torch.manual_seed(0)
    losses = LossStack(contrastive=0, hard_negative=0, more={"proxy": 1.0})
    plan = replace(PRESETS["proxies"].plan, clip=clip, losses=losses, tau=losses.tau)
    task = RetrievalTask(dual_prompt.build(plan, read), read, plan, Recipe(steps=30, batch=20, rate=1))
    optimizer = torch.optim.AdamW(learning(task.model).values(), lr=3e-2)
    for step in range(30):
        optimizer.zero_grad()
        task.loss(task.model, task.batches.batch(step))[0].backward()
        optimizer.step()

    def first(features):
        alike = (features @ features.T).fill_diagonal_(-1).argmax(1)
        label = torch.arange(len(features)) % 3
        return (label[alike] == label).float().mean().item()

    with torch.no_grad():
        assert first(task.model.encode_image(read.pixels(read.train.images))) > first(read.frozen(read.train.images))
