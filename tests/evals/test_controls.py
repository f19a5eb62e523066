"""The random map: another map, the same score, the same share kept."""

import pytest
import torch
from PIL import Image

from lvlm_guard.evals.decoders.matchers import RandomMap
from lvlm_guard.matching import Match, Matcher, keep_mask
from lvlm_guard.matching.relevance import heat_map


class Centre(Matcher):
    """Finds everything in the middle of the picture."""

    version = "centre"

    def __call__(self, images, texts):
        cam = torch.zeros(1, 6, 6)
        cam[0, 2:4, 2:4] = 1
        return [Match(heat_map(cam, 96)[0], 0.1 * len(text), note="a note") for text in texts]

    def support(self, image, claims):
        return torch.full((len(claims),), 0.25)


def scene(shade):
    return Image.new("RGB", (96, 96), (shade, 40, 90))


def test_the_score_is_the_real_one_and_the_map_is_not():
    real, control = Centre(), RandomMap(Centre())
    (theirs,), (ours,) = real([scene(1)], ["a dog?"]), control([scene(1)], ["a dog?"])
    assert ours.score == theirs.score
    assert ours.relevance.shape == theirs.relevance.shape
    assert not torch.allclose(ours.relevance, theirs.relevance, atol=0.1)
    assert ours.relevance.min() == 0
    assert ours.relevance.max() == 1
    assert ours.note is None
    assert torch.equal(control.support(scene(1), ["x"]), real.support(scene(1), ["x"]))


def test_as_many_pixels_are_kept_as_by_the_real_map():
    real, control = Centre(), RandomMap(Centre(), seed=2)
    for text in ("a?", "a dog?", "is there a"):
        (theirs,), (ours,) = real([scene(3)], [text]), control([scene(3)], [text])
        kept = keep_mask(ours.relevance, ours.score).float().mean()
        assert kept == pytest.approx(1 - theirs.score / 2, abs=2e-4)


def test_a_map_depends_on_picture_text_and_seed_and_on_nothing_else():
    control = RandomMap(Centre())
    alone = control([scene(1)], ["a dog?"])[0].relevance
    beside = control([scene(2), scene(1)], ["a cat?", "a dog?"])[1].relevance
    assert torch.equal(alone, beside)
    for other in (
        control([scene(2)], ["a dog?"]),
        control([scene(1)], ["a cat?"]),
        RandomMap(Centre(), seed=1)([scene(1)], ["a dog?"]),
    ):
        assert not torch.allclose(alone, other[0].relevance, atol=0.1)


def test_each_control_has_a_version_of_its_own():
    assert len({Centre.version, RandomMap(Centre()).version, RandomMap(Centre(), 1).version}) == 3
