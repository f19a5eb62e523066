"""The loss against golden values of the specification, and at the places where the release's goes wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss

from lvlm_guard.adapters.ranker.model import pair_loss, ranker_loss

VALUES = torch.tensor([0.0, 1.0, 1.0, 3.0])
SCORES = torch.tensor([0.2, 0.5, 1.5, 2.0])
LOGITS = SCORES[:, None] - SCORES[None]


@pytest.mark.parametrize(("ties", "expected"), [("half", 0.4061822), ("drop", 0.3247664), ("published", 0.4779234)])
def test_pair_loss_has_the_golden_values(ties: str, expected: float) -> None:
    assert pair_loss(LOGITS, VALUES, ties).item() == pytest.approx(expected, abs=1e-6)


def test_whole_loss_has_the_golden_values() -> None:
    loss = ranker_loss(SCORES, LOGITS, VALUES)
    assert (loss - pair_loss(LOGITS, VALUES)).item() == pytest.approx(0.0352104, abs=1e-6)
    assert loss.item() == pytest.approx(0.4413926, abs=1e-6)


def test_pair_loss_is_the_mean_over_a_loop_of_pairs() -> None:
    torch.manual_seed(0)
    logits, values = torch.randn(7, 7), torch.tensor([0.0, 0, 1, 2, 2, 5, 9])
    each = [
        binary_cross_entropy_with_logits(logits[i, j], torch.tensor(0.5 + 0.5 * float((values[i] - values[j]).sign())))
        for i in range(7)
        for j in range(7)
        if i != j
    ]
    torch.testing.assert_close(pair_loss(logits, values), torch.stack(each).mean())


@pytest.mark.parametrize("ties", ["half", "drop"])
def test_equal_pictures_with_zero_logits_have_no_gradient(ties: str) -> None:
    logits = torch.zeros(3, 3, requires_grad=True)
    pair_loss(logits, torch.tensor([2.0, 2.0, 2.0]), ties).backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_the_published_target_pulls_the_diagonal_which_antisymmetric_logits_can_not_follow() -> None:
    logits = torch.zeros(2, 2, requires_grad=True)
    pair_loss(logits, torch.tensor([2.0, 2.0]), "published").backward()
    assert logits.grad is not None
    assert (logits.grad.diag() > 0).all()


@pytest.mark.parametrize("ties", ["half", "drop"])
def test_a_single_picture_has_a_loss_of_its_score_alone(ties: str) -> None:
    loss = ranker_loss(torch.tensor([2.0]), torch.zeros(1, 1), torch.tensor([1.0]), ties=ties)
    assert pair_loss(torch.zeros(1, 1), torch.tensor([1.0]), ties) == 0
    assert loss.item() == pytest.approx(0.2 * torch.log1p(torch.tensor(0.5)).item())


def test_loss_is_computed_in_float32_under_autocast_and_for_half_precision_input() -> None:
    torch.manual_seed(0)
    scores, values = torch.randn(9) * 3, torch.randint(0, 4, (9,)).float()
    logits = torch.randn(9, 9)

    def losses(scores: Tensor, logits: Tensor) -> list[Tensor]:
        return [ranker_loss(scores, logits, values), pair_loss(logits, values)]

    exact = losses(scores, logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(one, other) for one, other in zip(losses(scores, logits), exact, strict=True))
        assert all(loss.dtype == torch.float32 for loss in losses(scores.bfloat16(), logits.bfloat16()))


def test_whole_numbers_are_taken_as_values() -> None:
    whole = ranker_loss(SCORES, LOGITS, VALUES.long())
    assert whole.item() == pytest.approx(0.4413926, abs=1e-6)
    values = 0.2 * smooth_l1_loss(SCORES, VALUES).log1p()
    torch.testing.assert_close(whole, pair_loss(LOGITS, VALUES) + values)
