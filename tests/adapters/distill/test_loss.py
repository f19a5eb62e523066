"""The loss, against its formula written out token by token."""

import math

import pytest
import torch

from lvlm_guard.adapters.distill.rows import Rows
from lvlm_guard.adapters.distill.training import balanced, distance

STUDENT = torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25], [0.1, 0.3, 0.6]], dtype=torch.float64)
PLAIN = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.4, 0.4], [1.0, 0.0, 0.0]], dtype=torch.float64)


def rows(token, open_, soft_ids, soft, first=(True, False, False)):
    n = torch.arange(3)
    parts = (torch.tensor(part) for part in (token, first, open_, soft_ids, soft))
    return Rows({}, n, n, *parts)


TOLD = rows([1, 0, 2], [True, False, False], [[1, 2], [0, 0], [0, 0]], [[0.8, 0.2], [0.0, 0.0], [0.0, 0.0]])


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def test_hard_targets_are_the_tokens_that_the_teacher_took():
    found = distance(STUDENT.log(), TOLD, None, soft=False)
    assert found.tolist() == pytest.approx([-math.log(0.2), -math.log(0.25), -math.log(0.6)])


def test_an_open_step_is_compared_with_the_guards_distribution_when_soft():
    found = distance(STUDENT.log(), TOLD, None, soft=True)
    assert found[0] == pytest.approx(kl([0.8, 0.2], [0.2, 0.1]))
    assert found[1:].tolist() == pytest.approx([-math.log(0.25), -math.log(0.6)])


def test_a_decided_step_is_compared_with_the_plain_distribution_when_kept():
    found = distance(STUDENT.log(), TOLD, PLAIN.log(), soft=True)
    assert found[0] == pytest.approx(kl([0.8, 0.2], [0.2, 0.1]))
    assert found[1] == pytest.approx(kl([0.2, 0.4, 0.4], [0.25, 0.5, 0.25]))
    assert found[2] == pytest.approx(kl([1.0], [0.1]))  # tokens of probability 0 add nothing


def test_cut_off_soft_targets_are_made_a_distribution_again():
    cut = rows([1, 0, 2], [True, False, False], [[1, 2], [0, 0], [0, 0]], [[0.4, 0.1], [0.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(
        distance(STUDENT.log(), cut, None, soft=True), distance(STUDENT.log(), TOLD, None, soft=True)
    )


def test_a_student_that_is_the_plain_model_has_nothing_to_learn_at_decided_steps():
    assert distance(PLAIN.log(), TOLD, PLAIN.log(), soft=True)[1:].abs().max() == 0


def test_few_yes_and_no_weigh_as_much_as_all_other_tokens():
    loss, first = torch.tensor([4.0, 1.0, 2.0, 3.0]), torch.tensor([True, False, False, False])
    assert float(balanced(loss, first)) == pytest.approx(4.0 + 2.0)
    assert float(balanced(loss[1:], first[1:])) == pytest.approx(2.0)


def test_gradients_reach_the_student_from_every_step():
    student = STUDENT.log().clone().requires_grad_()
    balanced(distance(student, TOLD, PLAIN.log(), soft=True), TOLD.first).backward()
    assert (student.grad.abs().sum(-1) > 0).all()
    assert torch.isfinite(student.grad).all()
