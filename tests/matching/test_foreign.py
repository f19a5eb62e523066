"""Any callable is a matcher, as the public contract says, and a wrong one is told so."""

import numpy as np
import pytest
import tiny
import torch
from matchers import Brightness

from lvlm_guard import guard, methods
from lvlm_guard.errors import KnobError, UnsupportedCallError
from lvlm_guard.matching import Match, load_matcher, local_view
from lvlm_guard.matching.combined import Combined

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


def test_a_segmenters_mask_stays_as_it_is_and_a_constant_map_hides_nothing():
    mask = np.zeros((16, 16), dtype=bool)
    mask[3:9, 2:5] = True
    picture = tiny.picture(1, 16, 16)
    (match,) = load_matcher(lambda images, texts: [mask])([picture], ["what?"])
    assert match.keep.numpy().tolist() == mask.tolist()
    for constant in (np.full((16, 16), 3.0), torch.zeros(16, 16), ~(mask | True), mask | True):
        (match,) = load_matcher(lambda images, texts, found=constant: [found])([picture], ["what?"])
        assert local_view(picture, match).tobytes() == picture.tobytes()
    with pytest.raises(KnobError, match="finite"):
        load_matcher(lambda images, texts: [np.full((4, 4), np.nan)])([picture], ["what?"])


def maps(*numbers, support=None):
    class Given(Brightness):
        version = f"given {numbers}"

        def __call__(self, images, texts):
            return [Match(torch.tensor(numbers).view(2, -1), 0.5) for _ in images]

        def support(self, image, claims):
            return torch.full((len(claims),), support)

        def require_support(self):
            if support is None:
                raise UnsupportedCallError("maps only")

    return Given()


def test_weighted_maps_are_averaged_in_any_order_and_those_without_support_have_no_say_in_it():
    picture, one, two = tiny.picture(1), maps(0.0, 1.0, 0.5, 0.5, support=0.9), maps(1.0, 0.0, 0.0, 1.0)
    three = maps(0.2, 0.4, 0.4, 0.2, support=0.5)
    (found,) = Combined([one, two, three], [1, 2, 1])([picture], ["what?"])
    expected = (torch.tensor([[0.0, 1.0], [0.5, 0.5]]) + 2 * torch.eye(2) + torch.tensor([[0.2, 0.4], [0.4, 0.2]])) / 4
    torch.testing.assert_close(found.relevance, expected)
    (other,) = Combined([three, one, two], [1, 1, 2])([picture], ["what?"])
    torch.testing.assert_close(other.relevance, found.relevance)
    (enlarged,) = Combined([one, maps(*[1.0] * 16)], [1, 1])([picture], ["what?"])
    assert enlarged.relevance.shape == (2, 8)
    p = Combined([one, two, three], [3, 2, 1]).support(picture, ["a dog"])
    torch.testing.assert_close(p.logit(), torch.tensor([0.9]).logit() * 3 / 4, atol=1e-4, rtol=0)
    with pytest.raises(UnsupportedCallError):
        Combined([two, two], [1, 1]).require_support()
    with pytest.raises(UnsupportedCallError):
        Combined([one, two]).require_support()
    with pytest.raises(KnobError, match="above 0"):
        Combined([one, two], [1, -1])
    with pytest.raises(KnobError, match="no weight"):
        load_matcher("embedded+some*embedded")
