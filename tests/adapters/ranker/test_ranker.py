"""`Ranker`: pictures and words in, numbers in the units of the data out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lvlm_guard.adapters.backbone import Inputs
from lvlm_guard.adapters.ranker.model import adapted, card_of
from lvlm_guard.adapters.ranker.ranker import Ranker, Ranking
from lvlm_guard.errors import LogitsError, TextError, UnsupportedCallError

ASKED = "Rank the numbers of dog."


def picture(seed: int, size: tuple[int, int] = (50, 40)) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


@pytest.fixture
def ranker(make_ranker: Callable[..., Any], inputs: Inputs, kind: str) -> Ranker:
    model = adapted(make_ranker(kind))
    return Ranker(model, card_of(model, calibration=(0.5, 2.0), mae=0.4), inputs)


def test_rank_gives_what_the_model_gives_on_the_inputs(ranker: Ranker) -> None:
    images = [picture(k) for k in range(3)]
    found = ranker.rank(images, ASKED)
    words = ranker.inputs.tokens([ASKED])
    with torch.inference_mode():
        said = ranker.model(pixel_values=ranker.inputs.pixels(images), **words)
    torch.testing.assert_close(found.scores, said.scores)
    torch.testing.assert_close(found.logits, said.logits)
    assert (found.logits + found.logits.T).abs().max() == 0


def test_pictures_are_squeezed_and_not_cropped(ranker: Ranker) -> None:
    wide = Image.new("RGB", (320, 32), "black")
    wide.paste("white", (0, 0, 10, 32))  # a crop to the middle would lose it
    pixels = ranker.inputs.pixels([wide])
    assert pixels.shape == (1, 3, 32, 32)
    assert min(pixels[0, :, 16, 0].tolist()) > 0  # grey level 0.5 after the mean
    assert pixels[0, :, 16, 16].tolist() == pytest.approx([-2.0] * 3)


def test_inputs_are_those_of_the_clips_own_processor_on_a_square_picture(
    saved_clip: Callable[..., Path], make_clip: Callable[..., Any]
) -> None:
    from transformers import CLIPImageProcessor

    place = saved_clip("vit")
    inputs, square = Inputs.of(make_clip(), place), picture(3, (32, 32))
    theirs = CLIPImageProcessor.from_pretrained(place)(square, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(inputs.pixels([square]), theirs)
    assert (inputs.side, inputs.context) == (32, 16)
    assert inputs.tokens(["rank the dog", "dog"])["attention_mask"].tolist() == [[1] * 5, [1] * 3 + [0] * 2]


def test_scores_are_in_the_units_of_the_instruction(ranker: Ranker) -> None:
    images = [picture(k) for k in range(3)]
    plain = ranker.rank(images, ASKED).scores
    ranker.card = replace(ranker.card, y_mean=30.0, y_std=10.0, scales={"Rank the cat.": (5.0, 2.0)})
    torch.testing.assert_close(ranker.rank(images, ASKED).scores, plain * 10 + 30)
    other = ranker.rank(images, "Rank the cat.").scores
    ranker.card = replace(ranker.card, scales={})
    torch.testing.assert_close(other, (ranker.rank(images, "Rank the cat.").scores - 30) / 10 * 2 + 5)
    assert ranker.count(images[0], "dog") == pytest.approx(float(plain[0]) * 10 + 30, abs=1e-4)


@pytest.mark.parametrize("at_once", [64, 3])
def test_values_of_many_objects_are_those_of_each_alone(
    ranker: Ranker, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = picture(1), picture(2)
    asked = [(one, "dog"), (other, "dog"), (one, "cat"), (one, "carrot")]
    monkeypatch.setattr("lvlm_guard.adapters.ranker.ranker.AT_ONCE", at_once)
    found = ranker.values(*map(list, zip(*asked, strict=True)))
    alone = [float(ranker.rank([image], ranker.card.asked(name)).scores[0]) for image, name in asked]
    torch.testing.assert_close(found, torch.tensor(alone), rtol=1e-4, atol=1e-5)
    assert len(set(found.tolist())) == 4


def test_absence_is_calibrated_and_counts_are_not_negative(ranker: Ranker) -> None:
    image = picture(1)
    score = float(ranker.values([image], ["dog"])[0])
    assert ranker.absent(image, "dog") == pytest.approx(1 / (1 + np.exp(-(0.5 - 2.0 * score))))
    ranker.card = replace(ranker.card, y_mean=-100.0)
    assert ranker.count(image, "dog") == 0.0
    assert ranker.absent(image, "dog") > 0.999
    assert ranker.count_is_doubtful(2, image, "dog")
    assert not ranker.count_is_doubtful(1, image, "dog")


def test_what_is_not_calibrated_gives_no_probability(ranker: Ranker) -> None:
    ranker.card = replace(ranker.card, calibration=None, mae=None)
    with pytest.raises(UnsupportedCallError, match="not calibrated"):
        ranker.absent(picture(1), "dog")
    with pytest.raises(UnsupportedCallError, match="error on validation is not known"):
        ranker.count_is_doubtful(3, picture(1), "dog")


def test_presence_is_the_logit_against_the_masked_picture(ranker: Ranker) -> None:
    image = picture(1)
    masked = image.copy()
    masked.paste("black", (0, 0, 25, 40))
    assert ranker.presence(image, masked, "dog") == pytest.approx(-ranker.presence(masked, image, "dog"), rel=1e-3)
    assert ranker.presence(image, masked, "dog") != 0
    assert ranker.presence(image, image, "dog") == pytest.approx(0, abs=1e-6)


def test_relevance_is_a_map_over_the_tokens_and_leaves_no_gradient(ranker: Ranker) -> None:
    image = picture(1)
    heat, score = ranker.relevance(image, "dog")
    assert heat.shape == (4, 4)
    assert (float(heat.min()), float(heat.max())) == (0.0, 1.0)
    assert score == pytest.approx(float(ranker.values([image], ["dog"])[0]), abs=1e-5)
    again, _ = ranker.relevance(image, "dog")
    assert torch.equal(heat, again)
    assert all(p.grad is None for p in ranker.model.parameters())


def test_relevance_is_the_attention_times_the_mean_gradient_on_the_way_from_ground(ranker: Ranker) -> None:
    words, tokens = ranker.inputs.tokens([ASKED]), ranker.image_tokens([picture(1)])
    ground = tokens[0].sort(0).values[(tokens.shape[1] - 1) // 2]
    slopes = []
    for share in (1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8, 1.0):
        kept: list[torch.Tensor] = []
        here = share * tokens + (1 - share) * ground
        said = ranker.model(image_tokens=here, **words, pairs=False, kept=kept)
        slopes.append(torch.autograd.grad(said.scores.sum(), kept))
    heat = torch.zeros(16)
    for layer, weights in enumerate(kept):
        slope = torch.stack([each[layer] for each in slopes]).mean(0)
        heat += (weights * slope).clamp(min=0).sum((1, 3))[0].detach()
    heat = (heat - heat.min()) / (heat.max() - heat.min())
    torch.testing.assert_close(ranker.relevance(picture(1), "dog")[0].flatten(), heat, rtol=1e-3, atol=1e-4)


def test_a_text_that_does_not_reach_the_score_has_no_relevance(ranker: Ranker) -> None:
    with torch.no_grad():
        for layer in ranker.model.ranker.fusion.layers:
            layer.cross_attention.out_proj.weight.zero_()
    heat, score = ranker.relevance(picture(1), "dog")
    assert not heat.any()
    assert score == ranker.relevance(picture(1), "cat")[1]


def test_order_is_by_mean_chance_and_ties_by_score() -> None:
    scores = torch.tensor([1.0, 3.0, 2.0, 2.5])
    logits = torch.tensor([[0.0, 1, 2, -1], [-1, 0, 0, 0], [-2, 0, 0, 1], [1, 0, -1, 0]])
    assert (logits + logits.T).abs().max() == 0
    wins = torch.sigmoid(logits).mean(1)
    assert Ranking(scores, logits).order() == sorted(range(4), key=lambda k: -float(wins[k]))
    assert Ranking(scores, torch.zeros(4, 4)).order() == [1, 3, 2, 0]


def test_similarity_is_the_clips_own(ranker: Ranker) -> None:
    images, texts = [picture(1), picture(2)], ["rank the dog", "cat"]
    found = ranker.similarity(images, texts)
    said = ranker.model.clip(pixel_values=ranker.inputs.pixels(images), **ranker.inputs.tokens(texts))
    torch.testing.assert_close(found, (said.image_embeds @ said.text_embeds.T).detach())


def test_many_pictures_and_none_are_ranked(ranker: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [picture(k) for k in range(7)]
    whole = ranker.rank(images, ASKED)
    monkeypatch.setattr("lvlm_guard.adapters.ranker.ranker.AT_ONCE", 3)
    parts = ranker.rank(images, ASKED)
    torch.testing.assert_close(parts.scores, whole.scores, rtol=1e-4, atol=1e-5)
    empty = ranker.rank([], ASKED)
    assert (empty.scores.shape, empty.logits.shape, empty.order()) == ((0,), (0, 0), [])
    assert ranker.values([], []).shape == (0,)


def test_a_switched_off_adapter_ranks_nothing(ranker: Ranker) -> None:
    with ranker.model.disable_adapter(), pytest.raises(UnsupportedCallError, match="switched off"):
        ranker.rank([picture(1)], ASKED)


def test_a_score_that_is_no_number_is_an_error(ranker: Ranker) -> None:
    with torch.no_grad():
        next(ranker.model.ranker.score.parameters()).fill_(float("nan"))
    with pytest.raises(LogitsError, match="no number"):
        ranker.rank([picture(1)], ASKED)


@pytest.mark.parametrize(("asked", "why"), [("", "empty"), ("  ", "empty"), ("dog " * 15, "has 17 tokens")])
def test_an_instruction_that_is_empty_or_too_long_is_refused(ranker: Ranker, asked: str, why: str) -> None:
    with pytest.raises(TextError, match=why):
        ranker.rank([picture(1)], asked)


def test_an_instruction_as_long_as_the_context_is_read_whole(ranker: Ranker) -> None:
    assert ranker.rank([picture(1)], "dog " * 14).scores.isfinite().all()


def test_a_saved_ranker_is_loaded_by_its_folder_alone(
    saved_clip: Callable[..., Path], small: Any, tmp_path: Path, kind: str
) -> None:
    from lvlm_guard.adapters.ranker.model import ClipRanker

    model = adapted(ClipRanker.from_pretrained(saved_clip(kind), settings=small))
    inputs = Inputs.of(model.clip)
    ranker = Ranker(model, card_of(model, calibration=(0.0, 1.0)), inputs)
    ranker.save_pretrained(tmp_path / "ranker")
    again = Ranker.from_pretrained(tmp_path / "ranker")
    images = [picture(k) for k in range(3)]
    assert torch.equal(again.rank(images, ASKED).scores, ranker.rank(images, ASKED).scores)
    assert again.card == ranker.card
