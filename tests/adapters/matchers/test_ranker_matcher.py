"""`ranker` as a matcher: presence, maps, and questions that it has no opinion on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from PIL import Image

from lvlm_guard.adapters.matchers.ranker import RankerMatcher
from lvlm_guard.adapters.ranker.ranker import Ranker
from lvlm_guard.errors import TextError, UnsupportedCallError, UnsupportedModelError
from lvlm_guard.matching.relevance import heat_map
from lvlm_guard.verify.check import verify


def test_support_is_one_less_the_probability_of_none(rank_matcher: RankerMatcher, images: list[Image.Image]) -> None:
    claims = ["is there a dog in the image?", "a photo of a car"]
    found = rank_matcher.support(images[0], claims)
    expected = [1 - rank_matcher.ranker.absent(images[0], name) for name in ("dog", "car")]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    pairs = rank_matcher.support_pairs([images[0], images[1]], [claims[0], claims[0]])
    assert pairs[0].item() == pytest.approx(expected[0], abs=1e-5)
    assert pairs[1].item() == pytest.approx(1 - rank_matcher.ranker.absent(images[1], "dog"), abs=1e-5)


def test_a_claim_of_more_than_presence_has_no_opinion(rank_matcher: RankerMatcher, images: list[Image.Image]) -> None:
    assert rank_matcher.support(images[0], ["Is the dog brown?"]).tolist() == [0.5]


def test_the_map_is_the_rankers_own_and_the_score_its_presence(
    rank_matcher: RankerMatcher, images: list[Image.Image]
) -> None:
    (match,) = rank_matcher(images[:1], ["is there a dog in the image ?"])
    heat, value = rank_matcher.ranker.relevance(images[0], "dog")
    assert torch.allclose(match.relevance, heat_map(heat[None], 96)[0], atol=1e-5)
    assert match.score == pytest.approx(1 / (1 + 2.718281828 ** (0.2 - 1.5 * value)), abs=1e-4)


def test_several_objects_have_the_larger_of_their_maps(rank_matcher: RankerMatcher, images: list[Image.Image]) -> None:
    (match,) = rank_matcher(images[:1], ["What stands between the dog and the car?"])
    each = torch.stack([rank_matcher.ranker.relevance(images[0], name)[0] for name in ("dog", "car")])
    assert torch.allclose(match.relevance, heat_map(each.amax(0)[None], 96)[0], atol=1e-5)


def test_a_text_without_an_object_keeps_the_whole_picture_and_says_so(
    rank_matcher: RankerMatcher, images: list[Image.Image]
) -> None:
    (match,) = rank_matcher(images[:1], ["Please describe this image in detail."])
    assert match.keep.all()
    assert match.note is not None
    assert "names no object" in match.note


def test_a_ranker_verifies_by_its_own_probability(rank_matcher: RankerMatcher, images: list[Image.Image]) -> None:
    assert not rank_matcher.compares
    verdict = verify(rank_matcher, images[0], "a photo of a dog", ["a photo of a cat"])
    assert verdict.kind == "absolute"
    assert verdict.p_supported == pytest.approx(1 - rank_matcher.ranker.absent(images[0], "dog"), abs=1e-5)


def test_rankers_that_can_not_tell_presence_are_refused(plain_ranker: Callable[..., Ranker]) -> None:
    with pytest.raises(UnsupportedCallError, match="not calibrated"):
        RankerMatcher(plain_ranker(calibration=None))
    with pytest.raises(UnsupportedModelError, match="asks for no object"):
        RankerMatcher(plain_ranker(instruction="Rank the brightness of the image."))


def test_an_empty_text_is_refused(rank_matcher: RankerMatcher, images: list[Image.Image]) -> None:
    with pytest.raises(TextError, match="empty"):
        rank_matcher(images[:1], [""])
    with pytest.raises(TextError, match="empty"):
        rank_matcher.support(images[0], [" "])
