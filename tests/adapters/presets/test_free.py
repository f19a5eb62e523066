"""What single presets that need no training of prompts do: searches, sentences, features, gates."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from lvlm_guard.adapters.errors import TrainingError
from lvlm_guard.adapters.presets import PRESETS
from lvlm_guard.adapters.retrieval.bank import Sentences
from lvlm_guard.adapters.retrieval.folder import Memory
from lvlm_guard.adapters.training import dual_prompt
from lvlm_guard.adapters.training.free import adapted
from lvlm_guard.errors import KnobError, UnsupportedCallError


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
