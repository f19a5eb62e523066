"""Any callable is a matcher, as the public contract says, and a wrong one is told so."""

import pytest
import tiny
import torch
from matchers import Brightness

from lvlm_guard import guard, methods
from lvlm_guard.errors import KnobError, UnsupportedCallError
from lvlm_guard.matching import Match

RUN = {"max_new_tokens": 8, "do_sample": False}


def left_half(images, texts):
    relevance = torch.zeros(16, 16)
    relevance[:, :9] = 1.0  # a match of 1 keeps half of the pixels, and those that tie with the last one
    return [Match(relevance, 1.0) for _ in images]


def ask(matcher, method=methods.AGLA, **knobs):
    model, processor = guard(*tiny.make("llava", scale=5.0), method(matcher=matcher, beta=0.01, **knobs))
    inputs = processor(images=tiny.picture(1), text=tiny.prompt(processor, "What?"), return_tensors="pt")
    out = model.generate(**inputs.to(torch.float64), **RUN, return_dict_in_generate=True)
    return out, out.guard.view(0)


def test_a_function_is_a_matcher():
    out, view = ask(left_half)
    assert out.guard.knobs["matcher"] == "left_half"
    assert view.local.size == (16, 16)
    assert view.local.crop((9, 0, 16, 16)).getbbox() is None
    assert view.local.crop((0, 0, 9, 16)).getbbox() is not None


def test_an_object_with_support_can_vote_and_one_without_can_not():
    class Mine:
        version = "mine-1"

        def __call__(self, images, texts):
            return left_half(images, texts)

        def support(self, image, claims):
            return [0.9] * len(claims)

    assert ask(Mine(), methods.Vote)[0].guard.knobs["matcher"] == "mine-1"
    with pytest.raises(UnsupportedCallError, match="left_half"):
        ask(left_half, methods.Vote)


@pytest.mark.parametrize("bad", [[], [1], [Match(torch.ones(3), 0.5)], [Match(torch.ones(4, 4), 0.5)] * 2])
def test_wrong_matches_are_told(bad):
    with pytest.raises(KnobError, match=r"one lvlm_guard\.matching\.Match"):
        ask(lambda images, texts: bad)


def test_a_subclass_of_matcher_is_taken_as_it_is():
    matcher = Brightness()
    out, _ = ask(matcher)
    assert matcher.calls == 1
    assert out.guard.knobs["matcher"] == "brightness-32"
