"""The algebra of assembled decoding, against the published numbers and by its laws."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from lvlm_guard.engine.assembly import complement, contrast, cut, divergence, plausible
from lvlm_guard.engine.method import Step
from lvlm_guard.errors import LogitsError
from lvlm_guard.evals.decoders.published import AGLAOfficial
from lvlm_guard.methods.agla import AGLA

GOLDEN = json.loads((Path(__file__).parents[1] / "data/agla/golden.json").read_text())["assembly"]
rows = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=12)
betas = st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.5, 0.9, 1.0])


def pairs(draw_rows):
    return torch.tensor(draw_rows, dtype=torch.float32)


def assembled(logits, other, alpha, beta):
    return cut(complement(logits, other, alpha), logits, plausible(logits, beta))


def test_every_golden_case_is_at_hand_in_both_number_formats():
    assert len(GOLDEN) >= 8
    assert {case["dtype"] for case in GOLDEN} == {"float16", "float32"}


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: f"{c['dtype']} alpha {c['alpha']} beta {c['beta']}")
def test_agla_reproduces_the_published_arithmetic(case):
    # the release computes in the model's own half precision; the paper's method casts up
    half = case["dtype"] == "float16"
    method = (AGLAOfficial if half else AGLA)(alpha=case["alpha"], beta=case["beta"])
    raw = torch.tensor([case["l"]], dtype=getattr(torch, case["dtype"]))
    other = torch.tensor([case["l_aug"]], dtype=raw.dtype)
    step = Step(raw.float(), raw, torch.tensor([1]), [0], lambda row: [], call=None)
    z = method.assemble(step, (other,))
    probabilities = z.to(raw.dtype).softmax(-1)[0].float() if half else z.softmax(-1)[0]
    assert torch.allclose(probabilities, torch.tensor(case["p"]), atol=5e-4 if half else 2e-5)
    assert [p == 0 for p in probabilities.tolist()] == [p == 0 for p in case["p"]]


@given(rows, betas)
def test_survivors_are_those_within_ln_beta_of_the_best(values, beta):
    logits = pairs(values)
    keep = plausible(logits, beta)
    best = max(values)
    for value, kept in zip(logits.tolist(), keep.tolist(), strict=True):
        margin = value - (best + math.log(beta)) if beta else math.inf
        if abs(margin) > 1e-4:
            assert kept == (margin >= 0)
    assert keep.any()


@given(rows, st.integers(0, 2**31), betas, st.floats(0, 5))
def test_rejected_tokens_have_probability_zero_and_keep_the_global_order(values, seed, beta, alpha):
    logits = pairs(values)
    other = torch.randn(len(values), generator=torch.Generator().manual_seed(seed)) * 10
    keep = plausible(logits, beta)
    z = assembled(logits, other, alpha, beta)
    assert torch.equal(z[keep], complement(logits, other, alpha)[keep])
    assert torch.isfinite(z).all()
    if (~keep).any():
        assert z[~keep].max() < z[keep].min()
        assert (z / 50).softmax(-1)[~keep].max() == 0  # even at temperature 50
        rejected, order = logits[~keep], z[~keep]
        apart = rejected[:, None] - rejected[None] > 0.01
        assert ((order[:, None] > order[None]) | ~apart).all()


@given(rows, betas, st.floats(0, 5))
def test_equal_branches_change_no_greedy_choice_and_contrast_changes_nothing(values, beta, alpha):
    logits = pairs(values)
    assert assembled(logits, logits, alpha, beta).argmax() == logits.argmax()
    same = cut(contrast(logits, logits, alpha), logits, plausible(logits, beta)).softmax(-1)
    keep = plausible(logits, beta)
    assert torch.allclose(same, logits.masked_fill(~keep, -math.inf).softmax(-1), atol=1e-5)


@given(rows)
def test_complement_of_equal_branches_is_a_temperature(values):
    logits = pairs(values)
    assert torch.allclose(complement(logits, logits, 2.0).softmax(-1), (logits * 3).softmax(-1), atol=1e-5)


@given(rows, st.integers(0, 2**31))
def test_divergence_is_the_jensen_shannon_divergence_of_scipy(values, seed):
    logits = pairs(values).double()
    other = torch.randn(len(values), generator=torch.Generator().manual_seed(seed)).double() * 3
    expected = jensenshannon(logits.softmax(-1).numpy(), other.softmax(-1).numpy()) ** 2
    assert divergence(logits, other).item() == pytest.approx(expected, abs=1e-9)
    assert divergence(logits, logits).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_without_a_distribution_raise(bad):
    with pytest.raises(LogitsError, match="NaN or infinity"):
        plausible(torch.tensor([[0.0, bad, 1.0]]), 0.5)
    with pytest.raises(LogitsError):
        plausible(torch.full((1, 3), -math.inf), 0.5)


def test_a_tie_at_the_cutoff_stays():
    logits = torch.tensor([1.0, 1.0 + math.log(0.5), 0.0])
    assert plausible(logits, 0.5).tolist() == [True, True, False]
