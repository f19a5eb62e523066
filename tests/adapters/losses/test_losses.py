"""The loss terms against hand-computed values, and the stack's checks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, normalize

from lvlm_guard.adapters.losses import TERMS, LossError, LossInputs, LossStack, term
from lvlm_guard.adapters.terms import (
    Generator,
    Proxies,
    agreement,
    aligned,
    anchoring,
    claims,
    consistency,
    contrastive,
    distilled,
    diversity,
    entropy,
    hard_negative,
    mixtures,
    ordered,
    proxy_anchor,
    shift,
    unseen,
)
from lvlm_guard.errors import GuardError, KnobError

SCORES = torch.tensor([[0.30, 0.20], [0.10, 0.25]])


def batch(n=4, d=6, m=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    image, text, image0, text0 = (normalize(torch.randn(n, d, generator=g), dim=-1) for _ in range(4))
    return LossInputs(
        scores=image @ text.T, negatives=torch.rand(n, m, generator=g), image=image, text=text,
        frozen_image=image0, frozen_text=text0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("alpha", "rows", "columns"),
    [(0, 0.1628811, 0.2271562), (0.5, 0.2346003, 0.3166248), (1, 0.3011740, 0.3956836)],
)
def test_contrastive_gives_the_specified_values_for_pairs_of_one_category(alpha, rows, columns):
    same = torch.tensor([3, 3])
    got = contrastive(SCORES, tau=0.07, categories=same, alpha=alpha)
    assert got.item() == pytest.approx((rows + columns) / 2, abs=1e-6)


def test_contrastive_without_categories_is_cross_entropy_both_ways():
    expected = (cross_entropy(SCORES / 0.07, torch.arange(2)) + cross_entropy(SCORES.T / 0.07, torch.arange(2))) / 2
    assert contrastive(SCORES, tau=0.07).item() == pytest.approx(expected.item(), abs=1e-6)
    apart = contrastive(SCORES, tau=0.07, categories=torch.tensor([0, 1]), alpha=1.0)
    unknown = contrastive(SCORES, tau=0.07, categories=torch.tensor([-1, -1]), alpha=1.0)
    assert apart.item() == unknown.item() == pytest.approx(expected.item(), abs=1e-6)


def test_contrastive_sets_images_against_swaps_of_all_captions_and_captions_against_images_alone():
    swaps = torch.tensor([[0.28, 0.10, -torch.inf], [0.05, 0.22, 0.20]])
    wide = torch.cat([SCORES, swaps], 1)
    expected = (cross_entropy(wide / 0.07, torch.arange(2)) + cross_entropy(SCORES.T / 0.07, torch.arange(2))) / 2
    assert contrastive(SCORES, tau=0.07, swaps=swaps).item() == pytest.approx(expected.item(), abs=1e-6)
    stack = LossStack(hard_negative=0, alpha=0, negclip=True, tau=0.07)
    assert stack(LossInputs(scores=SCORES, swaps=swaps)).total.item() == pytest.approx(expected.item(), abs=1e-6)
    assert contrastive(SCORES, tau=0.07, swaps=swaps[:, :0]).item() == contrastive(SCORES, tau=0.07).item()
    with pytest.raises(KnobError, match="swaps"):
        stack(LossInputs(scores=SCORES))


def test_contrastive_leaves_out_a_caption_that_is_the_same_text():
    g = torch.Generator().manual_seed(0)
    scores = torch.rand(3, 3, generator=g)
    same = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    without = [[0, 2], [1, 2], [0, 1, 2]]
    each = [
        -math.log(math.exp(m[i, i] / 0.1) / sum(math.exp(m[i, j] / 0.1) for j in without[i]))
        for m in (scores, scores.T)
        for i in range(3)
    ]
    assert contrastive(scores, tau=0.1, same=same).item() == pytest.approx(sum(each) / 6, abs=1e-5)


@pytest.mark.parametrize(("negatives", "loss"), [([0.28, 0.24, 0.30], 0.7597828), ([0.28, 0.24, 0.22], 0.1294041)])
def test_hard_negative_gives_the_specified_values(negatives, loss):
    got = hard_negative(torch.tensor([0.30]), torch.tensor([negatives]), tau=0.01)
    assert got.item() == pytest.approx(loss, abs=1e-5)
    assert math.exp(-0.1294041) == pytest.approx(0.8786195, abs=1e-6)


def test_hard_negative_ignores_swaps_that_are_not_there_and_pairs_without_any():
    positive = torch.tensor([0.30, 0.9], requires_grad=True)
    negatives = torch.tensor([[0.28, 0.24, 0.22, 5.0], [1.0, 1.0, 1.0, 1.0]])
    present = torch.tensor([[True, True, True, False], [False] * 4])
    got = hard_negative(positive, negatives, tau=0.01, present=present)
    assert got.item() == pytest.approx(0.1294041, abs=1e-5)
    none = hard_negative(positive, negatives, tau=0.01, present=torch.zeros_like(present))
    none.backward()
    assert none.item() == 0
    assert positive.grad.tolist() == [0, 0]


def test_feature_terms_give_the_specified_values_and_zero_where_nothing_changed():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    assert consistency(a, b).item() == pytest.approx(0.2928932, abs=1e-6)
    assert anchoring(a, b).item() == pytest.approx(0.5, abs=1e-6)
    assert agreement(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]])).item() == pytest.approx(
        0.0413039, abs=1e-6
    )
    for held in (consistency, anchoring, agreement):
        assert held(b, b).item() == pytest.approx(0, abs=1e-6)


def test_terms_are_computed_in_float32_for_half_precision_scores():
    half = contrastive(SCORES.bfloat16(), tau=0.01)
    assert half.dtype == torch.float32
    assert half.isfinite()
    assert half.item() == pytest.approx(contrastive(SCORES.bfloat16().float(), tau=0.01).item(), abs=1e-6)


@given(n=st.integers(2, 6), alpha=st.floats(0, 3), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_contrastive_is_never_negative_grows_with_alpha_and_ignores_the_order_of_pairs(n, alpha, seed):
    g = torch.Generator().manual_seed(seed)
    scores, categories = torch.rand(n, n, generator=g), torch.randint(0, 2, (n,), generator=g)
    loss = contrastive(scores, tau=0.1, categories=categories, alpha=alpha)
    order = torch.randperm(n, generator=g)
    turned = contrastive(scores[order][:, order], tau=0.1, categories=categories[order], alpha=alpha)
    assert loss >= 0
    assert loss >= contrastive(scores, tau=0.1, categories=categories, alpha=0) - 1e-5
    assert turned.item() == pytest.approx(loss.item(), abs=1e-4)


def test_the_stack_adds_weighted_terms_and_logs_each_before_its_weight():
    given_ = batch()
    value = LossStack(consistency=8, anchoring_text=25, anchoring_image=10, agreement=1)(given_)
    terms = {
        "contrastive": contrastive(given_.scores),
        "hard_negative": hard_negative(given_.scores.diagonal(), given_.negatives),
        "consistency": consistency(given_.image, given_.frozen_image) + consistency(given_.text, given_.frozen_text),
        "anchoring_text": anchoring(given_.text, given_.frozen_text),
        "anchoring_image": anchoring(given_.image, given_.frozen_image),
        "agreement": agreement(given_.scores / 0.01, given_.frozen_image @ given_.frozen_text.T / 0.01),
    }
    weights = [1, 1, 8, 25, 10, 1]
    assert value.terms == pytest.approx({name: term.item() for name, term in terms.items()}, rel=1e-4)
    expected = sum(w * t.item() for w, t in zip(weights, terms.values(), strict=True))
    assert value.total.item() == pytest.approx(expected, rel=1e-4)


def test_a_term_of_weight_zero_needs_nothing_and_is_not_computed():
    stack = LossStack(hard_negative=0)
    assert stack.needs == {"scores"}
    assert not stack.needs_frozen
    assert set(stack(LossInputs(scores=SCORES)).terms) == {"contrastive"}
    assert LossStack(consistency=8).needs_frozen


def test_positive_scores_of_their_own_are_used_against_the_swaps():
    given_ = LossInputs(scores=SCORES, positive=torch.tensor([0.5, 0.5]), negatives=torch.tensor([[0.49], [0.49]]))
    assert LossStack()(given_).terms["hard_negative"] == pytest.approx(math.log1p(math.exp(-1)), abs=1e-5)


def test_missing_inputs_name_the_field_and_the_weight_to_clear():
    with pytest.raises(KnobError, match=r"needs negatives.*weight of hard_negative to 0"):
        LossStack()(LossInputs(scores=SCORES))


def test_a_loss_that_is_not_finite_names_the_term_and_the_broken_input():
    scores = SCORES.clone()
    scores[0, 1] = torch.nan
    with pytest.raises(LossError, match=r"not finite in contrastive \(nan\)\. Scores of this batch already hold NaN"):
        LossStack(hard_negative=0)(LossInputs(scores=scores))
    with pytest.raises(LossError, match="tau is too small"):
        LossStack(hard_negative=0, tau=1e-45)(LossInputs(scores=SCORES * -1))
    assert issubclass(LossError, GuardError)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrastive": -1}, "contrastive is -1"),
        ({"consistency": math.nan}, "consistency is nan"),
        ({"agreement": math.inf}, "agreement is inf"),
        ({"alpha": "much"}, "alpha is 'much'"),
        ({"tau": 0}, "tau is 0"),
        ({"contrastive": 0, "hard_negative": 0}, "nothing would be learned"),
    ],
)
def test_weights_that_mean_nothing_are_refused_at_once(options, message):
    with pytest.raises(KnobError, match=message):
        LossStack(**options)


def test_claims_are_judged_one_by_one_and_true_and_false_ones_count_alike():
    scores = torch.tensor([[0.02, -0.01, -0.03], [0.01, -0.02, 0.00]])
    true = torch.tensor([[True, False, False], [False, False, False]])
    z = scores / 0.01
    false = torch.stack([z[0, 1], z[0, 2], *z[1]])
    expected = (torch.log1p(torch.exp(-z[0, 0])) + torch.log1p(torch.exp(false)).mean()) / 2
    assert claims(scores, true, ~true).item() == pytest.approx(expected.item(), rel=1e-5)
    assert claims(scores[:, 1:], true[:, 1:], ~true[:, 1:]).item() == pytest.approx(
        torch.log1p(torch.exp(z[:, 1:])).mean().item(), rel=1e-5
    )
    assert claims(torch.zeros(2, 0), *torch.zeros(2, 2, 0, dtype=torch.bool)).item() == 0
    assert LossStack(contrastive=0, hard_negative=0, claims=2)(
        LossInputs(claims=scores, claimed=true, refuted=~true)
    ).total.item() == pytest.approx(2 * expected.item(), rel=1e-5)


def test_claims_that_are_neither_true_nor_false_change_nothing():
    scores = torch.tensor([[0.02, -0.01, 5.0]], requires_grad=True)
    value = claims(scores, torch.tensor([[True, False, False]]), torch.tensor([[False, True, False]]))
    assert value.item() == pytest.approx(claims(scores[:, :2], *torch.eye(2, dtype=torch.bool)[:, None]).item())
    value.backward()
    assert scores.grad[0, 2] == 0


def test_terms_of_features_are_not_rounded_to_bfloat16_under_autocast():
    torch.manual_seed(0)
    features = {
        name: normalize(torch.randn(16, 32) + 1, dim=-1) for name in ("image", "text", "frozen_image", "frozen_text")
    }
    stack = LossStack(contrastive=0, hard_negative=0, agreement=1.0)
    exact = stack(LossInputs(**features)).total
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(stack(LossInputs(**features)).total, exact)


def test_further_terms_have_the_specified_values():
    f, f0 = torch.tensor([[1.0, 0]]), normalize(torch.tensor([[1.0, 1]]), dim=-1)
    assert shift(f, f0, f, f0) == 0
    assert shift(f, f0, f, f) > 0.7
    experts = normalize(torch.tensor([[[1.0, 0], [1, 1], [0, 1]]]), dim=-1)
    torch.testing.assert_close(diversity(experts), torch.tensor(1 / 3))
    assert diversity(torch.eye(3)[None]) == 0
    assert ordered(torch.tensor([0.95]), torch.tensor([0.2]), 0.9) == pytest.approx(0.15, abs=1e-6)
    sure = torch.tensor([[20.0, 0], [0, 20]])
    assert entropy(sure) == pytest.approx(-math.log(2), abs=1e-6)
    assert entropy(sure[:1].repeat(2, 1)) == pytest.approx(0, abs=1e-6)


def test_an_aligned_gradient_never_opposes_the_general_one_and_is_the_sum_where_they_agree():
    torch.manual_seed(0)
    for _ in range(5):
        p = torch.randn(6, requires_grad=True)
        a, b = torch.randn(6), torch.randn(6)
        value = aligned((p * a).sum(), (p * b).sum(), [p])
        torch.testing.assert_close(value, (p * (a + b)).sum())
        (given,) = torch.autograd.grad(value, p)
        assert (given - b) @ b > -1e-5
        if a @ b >= 0:
            torch.testing.assert_close(given, a + b)


def test_a_term_from_outside_is_weighed_as_ours_and_asks_for_what_it_needs():
    @term("twice", ["text"])
    def twice(_, given):
        return 2 * given.text.sum()

    try:
        stack = LossStack(contrastive=0, hard_negative=0, more={"twice": 3.0})
        assert stack.needs == {"text"}
        assert stack(LossInputs(text=torch.ones(1, 2))).total == 12
        with pytest.raises(KnobError, match="text"):
            stack(LossInputs())
        with pytest.raises(KnobError, match="Did you mean 'twice'"):
            LossStack(more={"twic": 1.0})
    finally:
        del TERMS["twice"]


def test_a_stack_that_aligns_has_the_gradients_of_both_losses_without_what_opposes():
    b = batch()
    image = b.image.clone().requires_grad_(True)
    given = replace(b, image=image, scores=image @ b.text.T)
    sums = LossStack(hard_negative=0, alpha=0, agreement=1.0, tau=0.5)
    steers = replace(sums, rule="aligned")
    assert float(steers(given, [image]).total) == pytest.approx(float(sums(given).total), abs=1e-4)
    (g,) = torch.autograd.grad(steers(given, [image]).total, image)
    assert g.isfinite().all()
    with pytest.raises(KnobError, match="agreement"):
        LossStack(rule="aligned")


def test_a_teacher_that_is_the_student_teaches_nothing_and_pairs_are_not_asked_for():
    logits, other = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 4)
    assert distilled(logits, logits).item() == pytest.approx(0, abs=1e-6)
    p = logits.softmax(1)
    assert distilled(other, logits).item() == pytest.approx((p * (p * 4).log()).sum(1).mean().item(), abs=1e-6)
    assert distilled(other, logits).item() == pytest.approx(distilled(other, logits.roll(1, 1)).item(), abs=1e-6)


def test_ordered_chains_have_margins_of_the_ends_and_of_the_steps():
    stack = LossStack(contrastive=0, hard_negative=0, more={"ordered": 1.0})
    assert ordered(torch.tensor([0.95]), torch.tensor([0.2]), 0.9).item() == pytest.approx(0.15, abs=1e-6)
    # the ends .15; steps .2 - .05 and 0, their mean .075
    assert stack(LossInputs(chain=torch.tensor([[0.95, 0.90, 0.2]]))).total.item() == pytest.approx(0.225, abs=1e-6)
    assert stack(LossInputs(chain=torch.tensor([[1.0, 0.5, 0.0]]))).total.item() == 0


def test_saliency_is_consistency_where_all_patches_stay():
    given_ = replace(batch(), kept_image=batch().image)
    held, masked = (LossStack(contrastive=0, hard_negative=0, **more) for more in (
        {"consistency": 1.0}, {"more": {"saliency": 1.0}}))  # fmt: skip
    assert masked(given_).total.item() == held(given_).total.item()
    other = replace(given_, kept_image=given_.kept_image.roll(1, 0))
    assert masked(other).total.item() != held(given_).total.item()


def test_texts_that_evoke_no_picture_find_the_null_image_and_captions_theirs():
    own = torch.eye(3)
    assert unseen(own[:2], own[:2], own[2:], own[2:], 0.01).item() == pytest.approx(0, abs=1e-6)
    lost = torch.cat([own[:2], own[:1]]) @ own.T / 0.1
    expected = cross_entropy(lost, torch.tensor([0, 1, 2]))
    assert unseen(own[:2], own[:2], own[:1], own[2:], 0.1).item() == pytest.approx(expected.item(), abs=1e-6)


def test_proxy_anchor_is_its_formula_falls_on_what_can_be_told_apart_and_leaves_out_what_is_unknown():
    image = normalize(torch.tensor([[1.0, 0.2], [1.0, -0.2], [0.1, 1.0]]), dim=-1)
    proxies = torch.eye(2)
    true = torch.tensor([[1, 0], [1, 0], [0, 1]]).bool()
    false = torch.tensor([[0, 1], [0, 0], [1, 0]]).bool()  # of the second picture the second class is not known
    s = (image @ proxies.T).tolist()
    near = math.log1p(sum(math.exp(-32 * (s[k][0] - 0.1)) for k in (0, 1))) + math.log1p(
        math.exp(-32 * (s[2][1] - 0.1))
    )
    far = math.log1p(math.exp(32 * (s[2][0] + 0.1))) + math.log1p(math.exp(32 * (s[0][1] + 0.1)))
    assert proxy_anchor(image, proxies, true, false).item() == pytest.approx((near + far) / 2, abs=1e-5)
    learnt = image.clone().requires_grad_(True)
    aid = Proxies(2, {"a": torch.tensor([0.5, 0.5]), "b": torch.tensor([0.4, 0.6])})
    optimizer = torch.optim.SGD([learnt, aid.own], lr=0.02)
    values = []
    for _ in range(50):
        value = proxy_anchor(learnt, aid(["a", "b"]), true, ~true)
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < values[0] / 2
    assert proxy_anchor(image, proxies[:0], true[:, :0], false[:, :0]).item() == 0


def test_mixtures_have_targets_that_sum_to_one_and_are_the_pictures_where_all_is_theirs():
    g = torch.Generator().manual_seed(0)
    image, text, far = (normalize(torch.randn(n, 5, generator=g), dim=-1) for n in (4, 3, 2))
    true = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 1]]).bool()
    drawn = torch.tensor([0, 1, 1, 0])
    features, targets = mixtures(image, text, far, true, torch.rand(4, 1, generator=g), drawn)
    assert features.shape == (8, 5)
    torch.testing.assert_close(targets.sum(1), torch.ones(8))
    features, targets = mixtures(image, text, far, true, torch.ones(4, 1), drawn)
    torch.testing.assert_close(features, torch.cat([image, image]))
    assert targets[:, 3:].sum() == 0
    features, _ = mixtures(image, text, far, true, torch.zeros(4, 1), drawn)
    torch.testing.assert_close(
        features, torch.cat([normalize(true / true.sum(1, keepdim=True) @ text, dim=-1), far[drawn]])
    )


def test_a_generator_never_sees_pictures_of_what_is_taken_for_unknown_and_has_fewer_neighbours_than_classes():
    g = torch.Generator().manual_seed(0)
    image, said = (normalize(torch.randn(n, 8, generator=g), dim=-1) for n in (6, 5))
    claimed = torch.zeros(6, 5, dtype=torch.bool)
    claimed[torch.arange(6), torch.tensor([0, 2, 4, 1, 3, 1])] = True
    torch.manual_seed(0)
    aids = {"unknown": Generator(8, {})}
    stack = LossStack(contrastive=0, hard_negative=0, more={"unknown": 1.0}, tau=0.1)
    value = stack(LossInputs(image=image, said=said.requires_grad_(True), claimed=claimed, aids=aids)).total
    hidden = image.clone()
    hidden[3:] = 0  # every second class: its pictures
    assert stack(LossInputs(image=hidden, said=said, claimed=claimed, aids=aids)).total.item() == value.item()
    hidden[0] = -hidden[0]
    assert stack(LossInputs(image=hidden, said=said, claimed=claimed, aids=aids)).total.item() != value.item()
    value.backward()
    assert all(parameter.grad.any() for parameter in aids["unknown"].parameters())
    assert said.grad.any()
    alone = LossInputs(image=image, said=said[:2], claimed=claimed[:, :2], aids=aids)
    assert stack(alone).total.item() == 0
