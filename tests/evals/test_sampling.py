"""Sampling with one stream a document: the right distribution, and nothing but seed and key decides."""

import itertools

import pytest
import torch
from scipy import stats

from lvlm_guard.evals.decoders.logits import DocumentSampler


def drawn(sampler, scores, step=0):
    ids = torch.zeros(len(scores), sampler.prompt_length + step, dtype=torch.long)
    return sampler(ids, scores).argmax(-1)


def test_tokens_are_drawn_with_the_probabilities_of_the_softmax():
    scores = torch.tensor([0.3, -1.0, 2.0, 0.0, -torch.inf])
    keys = [str(i) for i in range(4000)]
    tokens = drawn(DocumentSampler(0, keys, 3, temperature=0.7), scores.repeat(len(keys), 1))
    expected = len(keys) * (scores / 0.7).softmax(-1)[:4]
    counts = torch.bincount(tokens, minlength=5)
    assert counts[4] == 0
    assert stats.chisquare(counts[:4].numpy(), expected.numpy()).pvalue > 1e-3


def test_steps_of_one_document_are_independent_draws():
    scores = torch.zeros(1, 2)
    tokens = [int(drawn(DocumentSampler(5, ["a"], 0), scores, step)) for step in range(400)]
    both = sum(a == b for a, b in itertools.pairwise(tokens))
    assert 150 < sum(tokens) < 250
    assert 150 < both < 250


def test_a_draw_does_not_depend_on_the_other_rows():
    scores = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    keys = list("abcdef")
    together = drawn(DocumentSampler(1, keys, 4), scores, 2)
    alone = [int(drawn(DocumentSampler(1, [k], 9), scores[i : i + 1], 2)) for i, k in enumerate(keys)]
    assert together.tolist() == alone


def test_another_seed_draws_otherwise():
    scores = torch.zeros(200, 8)
    keys = [str(i) for i in range(200)]
    first, second = (drawn(DocumentSampler(seed, keys, 0), scores) for seed in (0, 1))
    assert (first != second).float().mean() > 0.7


def test_top_k_and_top_p_leave_only_what_they_allow():
    scores = torch.tensor([3.0, 2.0, 1.0, 0.0]).repeat(300, 1)
    keys = [str(i) for i in range(300)]
    assert set(drawn(DocumentSampler(0, keys, 0, top_k=2), scores).tolist()) == {0, 1}
    assert set(drawn(DocumentSampler(0, keys, 0, top_p=0.5), scores).tolist()) == {0}


def test_beams_are_refused():
    with pytest.raises(ValueError, match="num_beams=1"):
        DocumentSampler(0, ["a"], 0)(torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 3))
