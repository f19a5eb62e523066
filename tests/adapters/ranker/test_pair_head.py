"""The pair head against the softmax over both pictures' tokens that it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lvlm_guard.adapters.ranker.network import PairHead, compare, summarise
from lvlm_guard.adapters.ranker.settings import RankerSettings

SETTINGS = RankerSettings(width=32, heads=4, relations=6)


def literal(queries: Tensor, keys: Tensor) -> Tensor:
    """A_ij - A_ji as published: one softmax over the 2P tokens of each ordered pair, [K, K, H, e]."""
    pictures, tokens = keys.shape[:2]
    out = keys.new_zeros(pictures, pictures, *keys.shape[2:])
    for i in range(pictures):
        for j in range(pictures):
            both = torch.cat([keys[i], keys[j]])  # [2P, H, e]
            weights = torch.softmax(torch.einsum("hqe,phe->hqp", queries, both), -1)
            own = torch.einsum("hqp,phe->he", weights[..., :tokens], both[:tokens])
            other = torch.einsum("hqp,phe->he", weights[..., tokens:], both[tokens:])
            out[i, j] += own - other
    return out


class Largest(TorchDispatchMode):
    """Remembers the most numbers that any one tensor had."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return out


def saved_numbers(head: PairHead, pictures: int, tokens: int) -> int:
    """Numbers that autograd keeps for the backward pass, each storage once."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    # the input exists without the head, so it does not count
    states = torch.randn(pictures, tokens, head.out.in_features, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = head(states)
    kept.pop(states.untyped_storage().data_ptr(), None)
    del logits
    return sum(kept.values())


def test_factorised_attention_equals_one_softmax_over_each_pair() -> None:
    rng = torch.Generator().manual_seed(0)
    queries = torch.randn(4, 16, 96, generator=rng, dtype=torch.float64) / 96**0.5
    keys = torch.randn(5, 100, 4, 96, generator=rng, dtype=torch.float64)
    found = summarise(queries, keys)
    torch.testing.assert_close(compare(found, found).unflatten(-1, (4, 96)), literal(queries, keys), rtol=0, atol=1e-12)


def test_evidence_and_its_gradient_are_those_of_logsumexp() -> None:
    rng = torch.Generator().manual_seed(4)
    queries = 9 * torch.randn(2, 3, 8, generator=rng, dtype=torch.float64)
    keys = torch.randn(4, 7, 2, 8, generator=rng, dtype=torch.float64, requires_grad=True)
    evidence, _ = summarise(queries, keys)
    expected = torch.logsumexp(torch.einsum("hqe,kphe->khqp", queries, keys), -1)
    torch.testing.assert_close(evidence, expected, rtol=0, atol=1e-12)
    weights = torch.randn(expected.shape, generator=rng, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((of * weights).sum(), keys)[0] for of in (evidence, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_extreme_logits_neither_overflow_nor_differ_from_the_softmax() -> None:
    rng = torch.Generator().manual_seed(0)
    queries = 300 * torch.randn(2, 3, 8, generator=rng, dtype=torch.float64)
    keys = torch.randn(4, 7, 2, 8, generator=rng, dtype=torch.float64)
    found = summarise(queries, keys)
    torch.testing.assert_close(compare(found, found).unflatten(-1, (2, 8)), literal(queries, keys), rtol=0, atol=1e-9)


def test_golden_pair_of_the_specification() -> None:
    queries = torch.tensor([[[1.0, 0.0]]])
    keys = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]], [[[2.0, 0.0]], [[0.0, 0.0]]]])  # [2, 2, 1, 2]
    evidence, content = summarise(queries, keys)
    torch.testing.assert_close(evidence.flatten(), torch.tensor([1.3132617, 2.1269280]), rtol=0, atol=1e-5)
    expected = torch.tensor([[0.7310586, 0.2689414], [1.7615942, 0.0]])
    torch.testing.assert_close(content[:, 0, 0], expected, rtol=0, atol=1e-5)
    share = torch.sigmoid(evidence[0] - evidence[1]).item()
    assert share == pytest.approx(0.3071098, abs=1e-5)
    difference = compare((evidence, content), (evidence, content))
    torch.testing.assert_close(difference[0, 1], torch.tensor([-0.9960761, 0.0825945]), rtol=0, atol=1e-5)
    torch.testing.assert_close(difference[1, 0], -difference[0, 1], rtol=0, atol=1e-6)
    assert difference[0, 0].abs().max() < 1e-6


def test_logits_follow_the_formula_of_the_specification() -> None:
    torch.manual_seed(0)
    head = PairHead(SETTINGS).double()
    tokens = torch.randn(4, 9, 32, dtype=torch.float64)
    queries = head.query_norm(head.query(head.relations)).reshape(6, 4, 8).transpose(0, 1) / 8**0.5
    keys = head.key_norm(head.key(tokens)).reshape(4, 9, 4, 8)
    moved = literal(queries, keys).flatten(2) @ head.out.weight.T
    read = head.readout(moved)
    torch.testing.assert_close(head(tokens), (read - read.T) / 2, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pair_norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_logits_are_antisymmetric_bit_for_bit(dtype: torch.dtype, pair_norm: bool) -> None:
    torch.manual_seed(1)
    head = PairHead(RankerSettings(width=32, heads=4, relations=6, pair_norm=pair_norm)).to(dtype)
    logits = head(torch.randn(17, 9, 32).to(dtype))
    assert (logits + logits.T).abs().max() == 0
    assert logits.abs().max() > 0


def test_logits_are_antisymmetric_under_autocast_and_are_not_rounded_to_it() -> None:
    torch.manual_seed(1)
    head, tokens = PairHead(SETTINGS), torch.randn(9, 9, 32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(tokens)
    assert logits.dtype == torch.float32
    assert (logits + logits.T).abs().max() == 0
    torch.testing.assert_close(logits, head(tokens), rtol=0.1, atol=0.02)


def test_pictures_that_are_nearly_equal_get_a_nearly_zero_logit_also_in_bfloat16() -> None:
    torch.manual_seed(1)
    head, picture = PairHead(SETTINGS), torch.randn(1, 9, 32)
    near = torch.cat([picture, picture + 1e-3 * torch.randn(1, 9, 32)])
    with torch.autocast("cpu", torch.bfloat16):
        assert head(near)[0, 1].abs() < 1e-2
        assert head(torch.cat([picture, picture]))[0, 1].abs() < 1e-6


def test_permuted_pictures_permute_the_logits() -> None:
    torch.manual_seed(2)
    head = PairHead(SETTINGS).double()
    tokens, order = torch.randn(12, 9, 32, dtype=torch.float64), torch.randperm(12)
    torch.testing.assert_close(head(tokens[order]), head(tokens)[order][:, order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("pictures", [0, 1])
def test_fewer_than_two_pictures_have_no_pair(pictures: int) -> None:
    logits = PairHead(SETTINGS)(torch.randn(pictures, 9, 32))
    assert logits.shape == (pictures, pictures)
    assert not logits.any()


def test_a_table_computed_by_rows_has_the_same_logits_and_gradients() -> None:
    torch.manual_seed(3)
    head = PairHead(SETTINGS).double()
    tokens = torch.randn(11, 9, 32, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(11, 11, dtype=torch.float64)

    def results() -> tuple[Tensor, ...]:
        logits = head(tokens)
        learnt = [tokens, *head.parameters()]
        return logits.detach(), *torch.autograd.grad((logits * weights).sum(), learnt)

    whole = results()
    head.at_once = 3 * 11 * 32
    parts = results()
    assert (parts[0] + parts[0].T).abs().max() == 0
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_no_tensor_has_pairs_times_tokens() -> None:
    """Beside the pictures' own tokens nothing grows by tokens: four times of them, less than 1.5 times the memory."""
    head = PairHead(RankerSettings())
    with Largest() as seen, torch.no_grad():
        head(torch.randn(64, 196, 512))
    assert seen.numbers == 64 * 196 * 512  # the keys; pairs times tokens, by heads, would be the same again
    assert saved_numbers(head, 64, 196) < 1.5 * saved_numbers(head, 64, 49)


def test_memory_of_training_is_linear_in_pictures_beside_the_table() -> None:
    head = PairHead(RankerSettings(width=8, heads=2, relations=2), at_once=8 * 64 * 32)
    saved = {pictures: saved_numbers(head, pictures, 16) for pictures in (64, 256, 1024)}
    assert saved[256] < 4.2 * saved[64]
    assert saved[1024] < 4.2 * saved[256]
    with Largest() as seen, torch.no_grad():
        head(torch.randn(1024, 16, 8))
    assert seen.numbers == 1024**2  # the table itself; one tensor of pairs would be 8 times that
