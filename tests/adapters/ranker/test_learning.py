"""A ranker learns to count what an instruction names, and nothing where there is nothing to learn."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from lvlm_guard.adapters.evaluation.metrics import RankingFigures, mean_figures, ranking_figures
from lvlm_guard.adapters.ranker.model import ranker_loss
from lvlm_guard.adapters.ranker.network import RankerNetwork
from lvlm_guard.adapters.ranker.settings import RankerSettings

OBJECTS, TOKENS, WIDTH, PICTURES, STEPS = 4, 16, 32, 32, 240
SETTINGS = RankerSettings(width=WIDTH, heads=4, relations=8, prompts=4)


class World:
    """Sets of 16 tokens, 0 to 6 of which carry the object named, up to 6 another; the text has one token."""

    def __init__(self) -> None:
        self.objects = torch.randn(OBJECTS, WIDTH, generator=torch.Generator().manual_seed(11))

    def group(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return image tokens [32, 16, 32], text [1, 1, 32] and values [32]."""
        rng = torch.Generator().manual_seed(seed)
        asked = seed % OBJECTS
        values = torch.randint(0, 7, (PICTURES,), generator=rng)
        values[:6] = 0
        others = torch.randint(0, 7, (PICTURES,), generator=rng)
        image = 0.5 * torch.randn(PICTURES, TOKENS, WIDTH, generator=rng)
        for k in range(PICTURES):
            places = torch.randperm(TOKENS, generator=rng)
            own, their = int(values[k]), int(others[k])
            image[k, places[:own]] += self.objects[asked]
            image[k, places[own : own + their]] += self.objects[(asked + 1 + k % (OBJECTS - 1)) % OBJECTS]
        return image, self.objects[asked][None, None], values.float()


def learn(shuffled: bool, seed: int = 0) -> tuple[RankerNetwork, RankingFigures, RankingFigures]:
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    world, network = World(), RankerNetwork(WIDTH, WIDTH, SETTINGS)
    before = figures(network, world)
    learning = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    network.train()
    for step in range(STEPS):
        image, text, values = world.group(1000 + step)
        if shuffled:
            values = values[torch.randperm(PICTURES)]
        scores, logits = network(image, text)
        assert (logits + logits.T).abs().max() == 0
        loss = ranker_loss(scores, logits, values)
        learning.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        learning.step()
    return network, before, figures(network, world)


@torch.inference_mode()
def figures(network: RankerNetwork, world: World) -> RankingFigures:
    network.eval()
    each = {}
    for seed in range(8):
        image, text, values = world.group(seed)
        scores, _ = network(image, text)
        each[str(seed)] = ranking_figures(scores, values)
    return mean_figures(each)


@torch.inference_mode()
def circles(network: RankerNetwork, world: World) -> float:
    """Share of triples of pictures that the pair logits order in a circle."""
    image, text, _ = world.group(0)
    over = network(image, text)[1] > 0
    triples = list(combinations(range(PICTURES), 3))
    return sum(bool(over[a, b] == over[b, c] == over[c, a]) for a, b, c in triples) / len(triples)


@pytest.mark.slow
def test_a_ranker_learns_to_count_the_object_that_is_named() -> None:
    network, before, after = learn(shuffled=False)
    assert abs(before.srcc) < 0.5
    assert after.srcc > 0.9
    assert after.absence_auroc > 0.95
    assert after.mae < 0.6
    assert after.pair_accuracy > 0.9
    assert circles(network, World()) < 0.01


@pytest.mark.slow
def test_with_shuffled_values_a_ranker_stays_at_chance() -> None:
    _, _, after = learn(shuffled=True)
    assert abs(after.srcc) < 0.35
    assert abs(after.absence_auroc - 0.5) < 0.25
