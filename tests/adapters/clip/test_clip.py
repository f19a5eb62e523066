"""The tiny CLIP loads as any CLIP, reads as its texts end, and trains the same whether or not it is interrupted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPProcessor

from embedded_training import clip as training
from embedded_training import clip_accept as accept
from embedded_training import loop
from embedded_training.build import pixels
from embedded_training.clip_parts import CONTEXT, build, processor, vocabulary
from embedded_training.clip_seen import Claim, Pool, joined, plain, tinted
from lvlm_guard.adapters.data.read import world_facts
from lvlm_guard.adapters.loading import TINY
from lvlm_guard.embedded.captioned import scene
from lvlm_guard.embedded.catalog import CLASSES

TEXTS = ["two red dogs and a cat", "a photo of an apple", "a black bus"]


@pytest.fixture(scope="module")
def model() -> CLIPModel:
    loaded = CLIPModel.from_pretrained(TINY)
    loaded.eval()
    return loaded


@pytest.fixture(scope="module")
def pool() -> Pool:
    return joined([tinted(40), plain(30)])


def test_every_way_of_loading_gives_the_same_tokens_and_pixels() -> None:
    whole = CLIPProcessor.from_pretrained(TINY)
    picture = Image.fromarray(scene("captions", "test", 0).image)
    for tokens, images in (
        (whole.tokenizer, whole.image_processor),
        (AutoTokenizer.from_pretrained(TINY), AutoImageProcessor.from_pretrained(TINY)),
        (processor().tokenizer, processor().image_processor),
    ):
        assert tokens(TEXTS)["input_ids"] == whole.tokenizer(TEXTS)["input_ids"]
        found = images(picture, return_tensors="pt")["pixel_values"]
        assert torch.allclose(found, pixels(np.array(picture))[None], atol=1e-6)


def test_the_folder_is_small_and_computes_in_single_precision(model: CLIPModel) -> None:
    assert sum(path.stat().st_size for path in TINY.iterdir()) < 8_000_000
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


@torch.no_grad()
def test_a_text_is_pooled_at_its_end_whatever_stands_behind_it(model: CLIPModel) -> None:
    tokens = AutoTokenizer.from_pretrained(TINY)
    together = tokens(TEXTS, padding="max_length", return_tensors="pt")
    assert together.input_ids.shape == (3, CONTEXT)
    read = model.text_model(**together)
    for k, text in enumerate(TEXTS):
        alone = model.text_model(**tokens(text, return_tensors="pt"))
        assert torch.allclose(read.pooler_output[k], alone.pooler_output[0], atol=1e-5)
        assert torch.equal(alone.pooler_output[0], alone.last_hidden_state[0, -1])


def test_a_text_that_is_too_long_is_cut_before_its_end_mark() -> None:
    tokens = AutoTokenizer.from_pretrained(TINY)
    ids = tokens("a dog " * 60, truncation=True)["input_ids"]
    assert len(ids) == CONTEXT
    assert ids[-1] == tokens.eos_token_id
    assert len(tokens("a dog " * 60)["input_ids"]) > CONTEXT


def test_every_word_of_the_world_is_known() -> None:
    tokens = processor().tokenizer
    rows = world_facts("captions", "test", 400).captions.rows
    said = [text for row in rows for text in (row.caption, *row.negatives)]
    for by in ("count", "size", "brightness"):
        data = world_facts(by, "test", 200).ranks
        said += [data.instruction(name) for name in data.objects]
    unknown = tokens.unk_token_id
    assert not [text for text, ids in zip(said, tokens(said)["input_ids"], strict=True) if unknown in ids]
    assert unknown in tokens("a giraffe")["input_ids"]
    assert len(set(vocabulary().values())) == len(vocabulary())


def test_what_the_pool_calls_true_is_true_of_the_scenes(pool: Pool) -> None:
    """Captions against the groups of the scenes they were not made for."""
    rng = np.random.default_rng(0)
    scenes = [scene("captions", "pretrain", i) for i in range(40)]
    _, claims = zip(*(pool.caption(rng, i) for i in range(40)), strict=True)
    found = pool.true_of(range(40), claims)
    assert found.diagonal().all()
    assert 40 < found.sum() < 400

    def holds(claim: Claim, i: int) -> bool:
        of = {group.name: group for group in scenes[i].groups}.get(CLASSES[claim.index])
        if of is None or of.count < claim.least or (claim.exact and of.count != claim.least):
            return False
        return claim.tint < 0 or of.colour == ("red", "yellow", "green", "blue", "purple", "black")[claim.tint]

    for k, caption in enumerate(claims):
        assert found[k].tolist() == [all(holds(claim, i) for claim in caption) for i in range(40)]


def test_image_tokens_are_labelled_by_what_covers_them(pool: Pool) -> None:
    for i in range(40):
        drawn = scene("captions", "pretrain", i)
        for y in range(8):
            for x in range(8):
                cell = drawn.owner[y * 12 : y * 12 + 12, x * 12 : x * 12 + 12]
                label = int(pool.patches[i, y * 8 + x])
                if label:
                    assert (cell >= 0).any()
                    assert CLASSES[label - 1] in {drawn.groups[g].name for g in np.unique(cell[cell >= 0])}
                else:
                    assert max((cell == g).mean() for g in range(len(drawn.groups))) < 0.12


def test_a_pair_that_is_true_by_chance_is_no_negative() -> None:
    torch.manual_seed(0)
    image, caption = (torch.nn.functional.normalize(torch.randn(3, 8), dim=-1) for _ in range(2))
    scale, true = torch.tensor(10.0), torch.eye(3, dtype=torch.bool)
    plainly = training.contrast(image, caption, scale, true)
    logits = 10 * caption @ image.t()
    by_hand = -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()).mean() / 2
    assert torch.allclose(plainly, by_hand)
    true[0, 2] = True
    kept = torch.tensor([logits[0, 0], logits[0, 1]]).log_softmax(0)[0]
    rows = logits.log_softmax(1).diagonal()[1:].sum() + kept
    kept = torch.tensor([logits[1, 2], logits[2, 2]]).log_softmax(0)[1]
    columns = logits.log_softmax(0).diagonal()[:2].sum() + kept
    assert torch.allclose(training.contrast(image, caption, scale, true), -(rows + columns) / 6)


def test_an_interrupted_training_ends_in_the_weights_of_an_unbroken_one(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "EVERY", 2)
    monkeypatch.setattr(loop, "EVERY", 2)
    monkeypatch.setattr(training, "STEPS", 6)
    unbroken = training.train(0, 1.0, 8, pool, tmp_path / "whole")
    clock = iter([0.0, 1.0, 99.0])  # the start, then before step 0 and before step 2
    with monkeypatch.context() as patched:
        patched.setattr(training.time, "monotonic", lambda: next(clock))
        with pytest.raises(training.OutOfTime, match="2 of 6 steps"):
            training.train(0, 1.0, 8, pool, tmp_path / "broken", minutes=1)
    resumed = training.train(0, 1.0, 8, pool, tmp_path / "broken")
    start = build(0).state_dict()
    for name, weight in unbroken.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name])
    changed = [name for name, weight in unbroken.state_dict().items() if not torch.equal(weight, start[name])]
    assert len(changed) == len([name for name in start if "position_ids" not in name])


def test_what_is_written_loads_and_scores_as_what_was_trained(tmp_path: Path) -> None:
    model = build(3)
    model.eval()
    training.write(model, tmp_path)
    loaded = CLIPModel.from_pretrained(tmp_path)
    inputs = CLIPProcessor.from_pretrained(tmp_path)
    picture = Image.fromarray(scene("captions", "test", 0).image)
    batch = inputs(text=TEXTS, images=picture, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.allclose(model(**batch).logits_per_image, loaded(**batch).logits_per_image, atol=0.02)


def test_the_shipped_model_knows_objects_and_does_not_know_which_colour_is_whose(model: CLIPModel) -> None:
    figures = accept.measure(model, CLIPProcessor.from_pretrained(TINY), 200)
    assert figures["AUROC of swaps of category"][0] > 0.75
    assert 0.5 < figures["AUROC of swaps of number"][0] < 0.8
    assert 0.35 < figures["caption above its swaps of exchange"][0] < 0.75
    assert figures["R@10 text to image"][0] > 10 * 10 / 200
