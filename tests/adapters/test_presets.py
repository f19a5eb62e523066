"""Every preset keeps the promises of an adapter, on a tiny random CLIP."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny_clip
import torch
from in_memory import InMemory
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import normalize
from transformers import CLIPModel

from lvlm_guard.adapters.data.dataset import FactsData
from lvlm_guard.adapters.data.facts import CaptionRow, Facts
from lvlm_guard.adapters.errors import TrainingError
from lvlm_guard.adapters.losses import LossStack
from lvlm_guard.adapters.matchers.clip import ClipMatcher
from lvlm_guard.adapters.presets import PRESETS
from lvlm_guard.adapters.retrieval.bank import Sentences
from lvlm_guard.adapters.retrieval.folder import Memory
from lvlm_guard.adapters.terms import regulated
from lvlm_guard.adapters.training import dual_prompt
from lvlm_guard.adapters.training.free import adapted
from lvlm_guard.adapters.training.pairs import Teacher
from lvlm_guard.adapters.training.recipe import Recipe
from lvlm_guard.adapters.training.retrieval import RetrievalTask
from lvlm_guard.adapters.training.trainer import learning
from lvlm_guard.errors import KnobError, UnsupportedCallError, WeightsError

THINGS = ("dog", "cat", "car", "bus")
COLOURS = ("red", "blue", "green")
TRAINED = [name for name, preset in PRESETS.items() if not preset.plan.free]
FREE = [name for name, preset in PRESETS.items() if preset.plan.free]


def some_facts():
    rng = np.random.default_rng(0)
    pictures, facts = {}, []
    for k in range(12):
        thing, colour, key = THINGS[k % 4], COLOURS[k % 3], f"{k}.png"
        pictures[key] = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
        said = CaptionRow(key, f"a {colour} {thing}", category=thing, negatives=(f"a {colour} horse",))
        split = "val" if k >= 8 else "train"
        objects = {name: float(name == thing) for name in THINGS}
        facts.append(Facts(key, captions=(replace(said, split=split),), objects=objects, split=split))
    return FactsData(tuple(facts), InMemory(pictures), "twelve pictures", exhaustive=THINGS)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    place = tmp_path_factory.mktemp("clip")
    for part in (tiny_clip.clip(), tiny_clip.tokenizer(), tiny_clip.image_processor()):
        part.save_pretrained(place)
    return str(place)


@pytest.fixture(scope="module")
def pictures(clip):
    return dual_prompt.Pictures.read(some_facts().captions, clip)


@pytest.fixture(scope="module")
def trained(clip, pictures):
    """Preset -> its task after a step, with the gradients of the next."""
    found = {}

    def one(name):
        if name not in found:
            torch.manual_seed(0)
            plan = replace(PRESETS[name].plan, clip=clip)
            plan = replace(plan, losses=replace(plan.losses, claims=1.0), tau=1.0)
            task = RetrievalTask(dual_prompt.build(plan, pictures), pictures, plan, Recipe(steps=2, batch=8, rate=1e-2))
            optimizer = torch.optim.AdamW(learning(task.model).values(), lr=1e-2)
            for step in range(2):
                optimizer.zero_grad()
                task.loss(task.model, task.batches.batch(step))[0].backward()
                if step == 0:
                    optimizer.step()
            found[name] = task
        return found[name]

    return one


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


def test_a_search_reports_what_it_tried_its_best_and_a_bound_above_its_error(clip, pictures):
    plan = replace(PRESETS["pacbayes"].plan, clip=clip, search={"proposer": "edits", "budget": 20})
    made = dual_prompt.build(plan, pictures)
    found = adapted(plan, pictures, made, seed=0)
    assert found["tried"] == 20
    assert made.card.templates == (found["prompt"],)
    assert found["error"] < found["bound"] <= 1
    with pytest.raises(KnobError, match="--proposer"):
        adapted(replace(plan, search={"proposer": "history"}), pictures, made, seed=0)
    with pytest.raises(TrainingError, match="failed"):
        adapted(replace(plan, search={"proposer": "history"}, proposer="false"), pictures, made, seed=0)


def test_sentences_are_averaged_in_any_order(clip, tmp_path):
    plain = dual_prompt.untuned(clip)
    encode, names = plain.text_features, ["dog", "cat", "bus"]
    one = Sentences({"dog": ("a red dog", "a small dog")})
    other = Sentences({"dog": ("a small dog", "a red dog")})
    found = one.features(names, encode, "a photo of {article} {object}")
    torch.testing.assert_close(found, other.features(names, encode, "a photo of {article} {object}"))
    torch.testing.assert_close(found[1:], encode(["a photo of a cat", "a photo of a bus"]))
    with pytest.raises(KnobError, match="could not be read"):
        Sentences.from_file(tmp_path / "none.json")


def test_pairs_are_told_apart_among_the_best_alone_by_the_mean_of_their_sides(clip):
    encode, names = dual_prompt.untuned(clip).text_features, ("dog", "cat", "bus")
    image = normalize(torch.randn(5, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    scores = image @ encode(["a photo of a dog", "a photo of a cat", "a photo of a bus"]).T
    sides = Sentences({}, {"dog|cat": [("a red dog", "a blue cat")]}).sides(names, encode)
    told = Memory("pairs", names, {"sides": sides}).scored(image, scores, names, 0.01)
    expected = image @ encode(["a red dog", "a blue cat"]).T
    torch.testing.assert_close(told[:, :2], expected)
    assert torch.equal(told[:, 2], scores[:, 2])
    silent = Memory("pairs", names, {"sides": torch.zeros_like(sides)})
    assert torch.equal(silent.scored(image, scores, names, 0.01), scores)
    alone = Memory("pairs", ("dog",), {"sides": sides[:1, :1]})
    assert torch.equal(alone.scored(image, scores[:, :1], ["dog"], 0.01), scores[:, :1])


def test_a_mean_of_adapters_is_started_from_and_other_prompts_are_refused(clip, pictures, tmp_path):
    plan = replace(PRESETS["mvlpt"].plan, clip=clip)
    torch.manual_seed(1)
    sources = [dual_prompt.build(plan, pictures) for _ in range(2)]
    for k, source in enumerate(sources):
        source.save_pretrained(tmp_path / str(k))
    made = dual_prompt.build(replace(plan, init=(str(tmp_path / "0"), str(tmp_path / "1"))), pictures)
    first, second, mean = (learning(one.model) for one in (*sources, made))
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


def test_features_of_objects_are_learnt_without_the_text_encoder_after_their_start(clip, pictures):
    plan = replace(PRESETS["cones"].plan, clip=clip)
    made, calls = dual_prompt.build(plan, pictures), []
    start = made.text_features(["a photo of a dog"])
    made.model.base.text_model.register_forward_hook(lambda *_: calls.append(1))
    adapted(plan, pictures, made, seed=0)
    assert len(calls) == 1
    names = made.memory.names
    learnt = made.memory.tensors["text"][names.index("dog")]
    assert 0.2 < float(learnt @ start[0]) < 0.9999
    # of an object that it does not know, and of a caption, the cosine stays
    image, texts = pictures.frozen(pictures.train.images), ["a photo of a horse", "a red dog"]
    assert torch.equal(made.cosines(image, texts), dual_prompt.untuned(clip).cosines(image, texts))


def test_a_claim_is_read_with_keywords_and_without_them_only_its_own_feature_changes(clip, pictures, tmp_path):
    said = {"dog": ["The dog is a small wooden animal, often red"], "cat": ["a large cat with a bowl"]}
    (tmp_path / "bank.json").write_text(json.dumps({"classes": said}))
    plan = replace(PRESETS["kapt"].plan, clip=clip, bank=str(tmp_path / "bank.json"))
    made, claims = dual_prompt.build(plan, pictures), ["a photo of a dog", "a photo of a cat", "a photo of a bus"]
    assert made.card.sentences["dog"] == ("a photo of a dog, small, wooden, red",)
    assert made.said("a photo of a cat") == ("a photo of a cat, large, bowl",)
    assert made.said("a photo of a bus") == ("a photo of a bus",)
    before = made.text_features(claims)
    made.card = replace(made.card, sentences={"cat": made.card.sentences["cat"]})
    after = made.text_features(claims)
    assert not torch.allclose(before[0], after[0])
    torch.testing.assert_close(before[1:], after[1:])


def test_prompts_are_tuned_on_views_of_ones_own_and_features_alone_do_not_suffice(clip, pictures):
    plan = replace(PRESETS["difftpt"].plan, clip=clip)
    made, claims = dual_prompt.build(plan, pictures), ["a photo of a dog", "a photo of a cat"]
    adapted(plan, pictures, made, seed=0)
    keys = pictures.train.images[:2]
    pixels, image = pictures.pixels(keys), pictures.frozen(keys)
    plain = dual_prompt.untuned(clip).cosines(image, claims)
    with pytest.raises(UnsupportedCallError, match="each picture"):
        made.cosines(image, claims)
    tuned = made.cosines(image, claims, pixels=lambda: pixels)
    alone = made.cosines(image[1:], claims, pixels=lambda: pixels[1:])
    torch.testing.assert_close(alone, tuned[1:], atol=1e-5, rtol=0)
    with torch.inference_mode():
        torch.testing.assert_close(made.cosines(image, claims, pixels=lambda: pixels), tuned)
    asked = []
    made.views = lambda one: asked.append(one) or torch.stack([one, one])
    own = made.cosines(image, claims, pixels=lambda: pixels)
    assert len(asked) == 2
    assert not torch.allclose(own, tuned, atol=1e-5)
    assert not torch.allclose(own, plain, atol=1e-5)


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


def test_a_gate_closes_for_dark_pictures_and_leaves_what_is_told_of_others(clip, pictures):
    torch.manual_seed(0)
    plan = replace(PRESETS["cliplit"].plan, clip=clip)
    made = dual_prompt.build(plan, pictures)
    found = adapted(plan, pictures, made, seed=0)
    assert found["lit"] > 0.8 > 0.2 > found["dark"]
    pair, undecided = made.memory.tensors["pair"], made.memory.tensors["undecided"]
    scores, names = torch.tensor([[0.9, 0.1], [0.9, 0.1]]), ["dog", None]
    gated = made.memory.scored(pair, scores, names, 0.01)
    lit = (pair @ pair.T / 0.01).softmax(1)[:, 0]
    torch.testing.assert_close(gated[:, 0], undecided + lit * (0.9 - undecided))
    assert torch.equal(gated[:, 1], scores[:, 1])


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
