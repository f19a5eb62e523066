"""Search over prompts, what its result is worth, and adapting at test time: specified values and properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from lvlm_guard.adapters import search as searching
from lvlm_guard.adapters import testtime
from lvlm_guard.adapters.search import bound, chatting, climbing, edits, is_prompt, mixed, search
from lvlm_guard.errors import KnobError

SEEDS = ["a photo of a {object}", "{object}"]
WORDS = ["red", "small", "picture"]


def length(prompts):
    return [float(len(prompt.split())) for prompt in prompts]


@pytest.mark.parametrize("propose", [lambda: edits(WORDS), lambda: climbing(WORDS)], ids=["edits", "climbing"])
def test_a_search_spends_its_budget_exactly_finds_better_and_is_fixed_by_its_seed(propose):
    found = search(SEEDS, propose(), length, 40, np.random.default_rng(3))
    assert len(found.fitness) == 40
    assert found.fitness[found.best] == max(length(found.fitness))
    assert found.fitness[found.best] > 5
    assert all(map(is_prompt, found.fitness))
    again = search(SEEDS, propose(), length, 40, np.random.default_rng(3))
    assert list(again.fitness) == list(found.fitness)


def test_replies_of_an_llm_are_untrusted_and_told_what_was_tried():
    asked = []

    def chat(message):
        asked.append(message)
        return (
            "a {object} here\n{object} {object}\nno slot\n"
            + "x" * 300
            + "{object}\na {object} here\n{o.__class__} {object}"
        )

    found = search(SEEDS, chatting(chat, worst=True, captions=["a dog"]), length, 3, np.random.default_rng(0))
    assert list(found.fitness) == [*SEEDS, "a {object} here"]
    assert found.dropped == 5
    assert "5.0000 a photo of a {object}" in asked[0]
    assert "1.0000 {object}" in asked[0].split("Bad ones:")[1]
    assert "a dog" in asked[0]


def test_a_search_that_finds_nothing_new_ends_and_one_without_a_seed_is_refused():
    assert len(search(SEEDS, lambda *_: SEEDS, length, 10, np.random.default_rng(0)).fitness) == 2
    with pytest.raises(KnobError, match="needs a seed"):
        search(["nothing"], edits(WORDS), length, 10, np.random.default_rng(0))


def test_of_two_prompts_as_accurate_the_better_calibrated_is_fitter():
    true = np.array([True, True, False, False])
    assert mixed(np.array([2.0, 2, -2, -2]), true) > mixed(np.array([0.1, 9, -0.1, -9]), true)


def test_the_bound_has_the_specified_value_and_holds_on_simulated_choices():
    right = (40 + math.log(2 * math.sqrt(1000) / 0.05)) / 1000
    assert right == pytest.approx(0.0471428, abs=1e-7)
    assert bound(0.1, 1000, 40) == pytest.approx(0.2159510, abs=1e-6)
    assert bound(0.1, 1000, 40) < 0.1 + math.sqrt(right / 2)
    rng = np.random.default_rng(0)
    broken = 0
    for _ in range(200):
        truth = rng.uniform(0.05, 0.6, 32)  # 32 prompts under a uniform prior: ln 32 nats each
        seen = rng.binomial(200, truth) / 200
        best = int(seen.argmin())
        broken += truth[best] > bound(float(seen[best]), 200, math.log(32))
    assert broken <= 10
    assert bound(1.0, 10, 0) == 1
    with pytest.raises(KnobError, match="delta"):
        bound(0.1, 10, 0, delta=0)


def test_a_cache_has_the_specified_affinity_and_without_weight_is_clip():
    f = normalize(torch.tensor([[1.0, 0.5]]), dim=-1)
    p = torch.tensor([[0.7, 0.3]])
    held = {name: torch.eye(2) for name in ("keys", "values", "shares")}
    expected = p + torch.tensor([[0.5595343, 0.0478193]]) * normalize(p, dim=-1)
    torch.testing.assert_close(testtime.recalled(f, p, held), expected, atol=1e-6, rtol=0)
    assert torch.equal(testtime.recalled(f, p, held, weight=0.0), p)


def test_a_cache_remembers_the_surest_of_each_class_and_no_more_than_asked():
    torch.manual_seed(0)
    features = normalize(torch.randn(60, 8), dim=-1)
    p = (features[:, :3] * 9).softmax(-1)
    made = testtime.cache(features, p, most=4)
    labels = made["values"].argmax(1)
    assert labels.bincount(minlength=3).max() <= 4
    assert torch.equal(labels, made["shares"].argmax(1))


def test_negatives_are_mined_far_from_every_positive():
    names = ["near", "middle", "far", "farther"]
    features = normalize(torch.tensor([[1.0, 0.1], [1, 1], [0.2, 1], [0, 1]]), dim=-1)
    assert testtime.mine(torch.tensor([[1.0, 0]]), names, features, 2) == ["far", "farther"]
    with pytest.raises(KnobError, match="one each"):
        testtime.mine(torch.eye(2), names, torch.eye(2), 1)


def test_views_are_filtered_and_their_mean_has_the_specified_entropy():
    logits = torch.tensor([[2.0, 0], [0, 2], [3, 0]])
    each = [float(testtime.spread(row[None])) for row in logits]
    assert each == pytest.approx([0.3653339, 0.3653339, 0.1908650], abs=1e-6)
    assert float(testtime.spread(logits[[0, 2]])) == pytest.approx(0.2867906, abs=1e-6)
    assert testtime.confident(logits, 0.34).tolist() == [2]
    assert 0 in testtime.faithful(logits, 0.3).tolist()


def test_views_begin_with_the_picture_and_are_parts_of_it_the_same_each_time():
    pixels = torch.rand(3, 16, 16)
    views = testtime.crops(pixels, 20)
    assert views.shape == (20, 3, 16, 16)
    assert torch.equal(views[0], pixels)
    assert torch.equal(views, testtime.crops(pixels, 20))
    assert len({float(view.sum()) for view in views}) == 20
    low, high = pixels.amin((1, 2)), pixels.amax((1, 2))
    assert bool(((views >= low[:, None, None] - 1e-6) & (views <= high[:, None, None] + 1e-6)).all())


def test_tuning_on_a_picture_lowers_entropy_and_leaves_the_model_bit_for_bit():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    views = torch.randn(8, 4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plain = model(views[:1])[0].detach()
    tuned = testtime.tune(views, model, model, steps=5, rate=0.05, share=0.5, alike=0.8)
    assert testtime.spread(tuned[None]) < testtime.spread(plain[None])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert searching.LONGEST == 200
