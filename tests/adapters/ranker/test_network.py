"""The network: what flows where, and what learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lvlm_guard.adapters.ranker.network import Attention, RankerNetwork
from lvlm_guard.adapters.ranker.settings import RankerSettings
from lvlm_guard.errors import KnobError, UnsupportedCallError

SMALL = RankerSettings(width=32, heads=4, prompts=4, relations=6)
Tokens = tuple[Tensor, Tensor, Tensor]


def network(settings: RankerSettings = SMALL, seed: int = 0) -> RankerNetwork:
    torch.manual_seed(seed)
    return RankerNetwork(40, 24, settings).double()


def tokens(pictures: int = 5) -> Tokens:
    torch.manual_seed(9)
    mask = torch.tensor([[True] * 6 + [False] * 3])
    return torch.randn(pictures, 16, 40).double(), torch.randn(1, 9, 24).double(), mask


def scored(of: RankerNetwork, image: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
    return of.eval()(image, text, mask)[0].detach()


def test_default_sizes_have_the_parameters_of_the_specification() -> None:
    with torch.device("meta"):
        default = RankerNetwork(768, 512, RankerSettings())
        released = RankerNetwork(768, 768, RankerSettings(width=768))
    millions = sum(p.numel() for p in released.parameters()) / 1e6
    assert millions == pytest.approx(40.8, abs=0.1)  # the release's count
    parts = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in released.named_children()}
    assert parts["fusion"] == pytest.approx(28.9 + 7.1, abs=0.15)
    assert parts["pair"] == pytest.approx(1.8 + 1.8, abs=0.05)
    assert parts["score"] == pytest.approx(1.2, abs=0.05)
    assert sum(p.numel() for p in default.parameters()) / 1e6 == pytest.approx(18, abs=0.6)


def test_permuted_pictures_permute_scores_and_logits() -> None:
    of, (image, text, mask) = network().eval(), tokens(7)
    order = torch.randperm(7)
    scores, logits = of(image, text, mask)
    moved, turned = of(image[order], text, mask)
    torch.testing.assert_close(moved, scores[order], rtol=0, atol=1e-12)
    torch.testing.assert_close(turned, logits[order][:, order], rtol=0, atol=1e-12)


def test_pictures_do_not_see_each_other_in_their_scores() -> None:
    of, (image, text, mask) = network(), tokens()
    alone = torch.cat([scored(of, image[k : k + 1], text, mask) for k in range(5)])
    torch.testing.assert_close(scored(of, image, text, mask), alone, rtol=0, atol=1e-12)


def test_each_prompt_changes_the_score_and_learns() -> None:
    """The release's are one number each, which LayerNorm makes zero: nothing changes, and the gradient is noise."""
    of, (image, text, mask) = network().eval(), tokens()
    prompts = of.fusion.prompts
    assert prompts is not None
    assert prompts.shape == (4, 32)
    before = scored(of, image, text, mask)
    of(image, text, mask)[0].sum().backward()
    assert prompts.grad is not None
    for k in range(4):
        changed = network()
        step = torch.randn(32).double() * 1e-6
        with torch.no_grad():
            changed.fusion.prompts[k] += step
        moved = scored(changed, image, text, mask).sum() - before.sum()
        assert moved.item() == pytest.approx(float(prompts.grad[k] @ step), rel=0.02)
        assert prompts.grad[k].norm() > 1e-4


def test_scalar_prompts_spread_over_the_width_would_be_lost() -> None:
    """Why prompts are vectors: the same experiment with the release's parametrisation."""
    norm = network().fusion.layers[0].text_norm
    one, other = (norm(torch.full((32,), value).double()) for value in (0.3, -1.7))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_padding_of_the_text_changes_nothing_unless_it_is_asked_to() -> None:
    image, text, mask = tokens()
    garbage = text.clone()
    garbage[:, 6:] = 100 * torch.randn(3, 24).double()
    of = network()
    torch.testing.assert_close(scored(of, image, text, mask), scored(of, image, garbage, mask), rtol=0, atol=0)
    torch.testing.assert_close(scored(of, image, text, mask), scored(of, image, text[:, :6], None), rtol=0, atol=1e-12)
    released = network(replace(SMALL, mask_text=False))
    assert not torch.allclose(scored(released, image, text, mask), scored(released, image, garbage, mask))


def test_mean_of_tokens_does_not_depend_on_their_number_and_sum_does() -> None:
    image, text, mask = tokens()
    twice = torch.cat([image, image], 1)
    for pool, same in (("mean", True), ("sum", False)):
        of = network(replace(SMALL, pool=pool))
        equal = torch.allclose(scored(of, image, text, mask), scored(of, twice, text, mask), atol=1e-10)
        assert equal == same


def test_two_builds_with_one_seed_are_equal_and_finite() -> None:
    """The release's projection starts as memory finds it."""
    torch.empty(2**20).fill_(float("nan"))  # memory that would be found again
    one, other = network(seed=3).state_dict(), network(seed=3).state_dict()
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    assert all(bool(weight.isfinite().all()) for weight in one.values())
    projection = RankerNetwork(40, 24, replace(SMALL, width=256)).fusion.projection
    assert projection.std().item() == pytest.approx(256**-0.5, rel=0.05)


@pytest.mark.parametrize("settings", [SMALL, replace(SMALL, pair_norm=True, prompts=0), replace(SMALL, post_layers=0)])
def test_every_weight_learns(settings: RankerSettings) -> None:
    of, (image, text, mask) = network(settings), tokens()
    scores, logits = of.train()(image, text, mask)
    (scores.square().sum() + (logits.triu() * torch.randn(5, 5)).sum()).backward()
    silent = [name for name, p in of.named_parameters() if p.grad is None or p.grad.norm() < 1e-8]
    assert silent == []


def test_several_instructions_give_the_scores_of_each_alone_and_no_pairs() -> None:
    of, (image, text, mask) = network().eval(), tokens(3)
    texts = torch.cat([text, 2 * text, -text])
    masks = torch.stack([mask[0], mask[0].roll(0), torch.ones(9, dtype=torch.bool)])
    scores, logits = of(image, texts, masks, pairs=False)
    assert logits is None
    alone = [scored(of, image[k : k + 1], texts[k : k + 1], masks[k : k + 1]) for k in range(3)]
    torch.testing.assert_close(scores.detach(), torch.cat(alone), rtol=0, atol=1e-12)
    with pytest.raises(UnsupportedCallError, match="compared under one"):
        of(image, texts, masks)


def test_attention_that_is_kept_gives_the_same_numbers() -> None:
    of, (image, text, mask) = network().eval(), tokens()
    kept: list[Tensor] = []
    scores, _ = of(image, text, mask, True, kept)
    torch.testing.assert_close(scores.detach(), scored(of, image, text, mask), rtol=0, atol=1e-12)
    assert [tuple(weights.shape) for weights in kept] == [(5, 4, 16, 4 + 9)] * 2
    assert not any(bool(weights[..., -3:].any()) for weights in kept)


def test_attention_equals_that_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(32, 4).double(), torch.nn.MultiheadAttention(32, 4, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q_proj.bias, torch.randn(32).double(), ours.v_proj.bias]))
        theirs.out_proj.weight.copy_(ours.out_proj.weight)
        theirs.out_proj.bias.copy_(ours.out_proj.bias)
    queries, context = torch.randn(3, 7, 32).double(), torch.randn(3, 5, 32).double()
    mask = torch.tensor([[True] * 4 + [False]] * 3)
    # a bias of the keys, random above, shifts all logits of a query alike: it is nothing
    expected = theirs(queries, context, context, key_padding_mask=~mask)[0]
    torch.testing.assert_close(ours(queries, context, mask), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"width": 0}, "width is 0"),
        ({"width": 30}, "shared out among 4 heads"),
        ({"heads": True}, "heads is True"),
        ({"prompts": -1}, "prompts is -1"),
        ({"relations": 1.5}, "relations is 1.5"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"ties": "sometimes"}, "half, drop, published"),
        ({"pool": "max"}, "mean, sum"),
        ({"regression_weight": float("nan")}, "regression_weight is nan"),
    ],
)
def test_sizes_and_choices_that_are_none_are_refused(wrong: dict[str, object], why: str) -> None:
    with pytest.raises(KnobError, match=why):
        replace(SMALL, **wrong)  # type: ignore[arg-type]
