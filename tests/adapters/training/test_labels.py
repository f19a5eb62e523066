"""What is learnt comes from the labels: with shuffled ones there is nothing, and no figure reads the pairing (spec, 6).

All trainings are the commands' own, and so is the search in two stages by word weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from lvlm_guard.adapters.data import CaptionData, RankData
from lvlm_guard.adapters.data.pictures import Features
from lvlm_guard.adapters.data.read import world_facts
from lvlm_guard.adapters.evaluation.metrics import RankingFigures, recall
from lvlm_guard.adapters.evaluation.metrics import ranks as places
from lvlm_guard.adapters.evaluation.ranking import Lists
from lvlm_guard.adapters.ranker.settings import RankerSettings
from lvlm_guard.adapters.retrieval.folder import untuned
from lvlm_guard.adapters.retrieval.retriever import DualPromptRetriever
from lvlm_guard.adapters.training import dual_prompt, ranker
from lvlm_guard.adapters.training.recipe import Recipe
from lvlm_guard.adapters.training.retrieval import RetrievalTask
from lvlm_guard.adapters.training.trainer import train
from lvlm_guard.embedded.captioned import COUNTED, Pictures

pytestmark = pytest.mark.slow

HELD_OUT = 100  # captions, one a picture
TWO_STAGES = dual_prompt.Plan(strength=0.5)
LISTS = ranker.Plan(
    settings=RankerSettings(
        width=64, heads=4, relations=4, prompts=4, fusion_layers=1, post_layers=1, dropout=0.0, regression_weight=0.5
    )
)
Searched = Callable[[DualPromptRetriever, np.ndarray], dict[str, dict[int, float]]]
"""(retriever, the picture that each caption is said to be of) -> recall both ways."""


def luck(k: int) -> float:
    """Return the recall at k that blind guesses stay at or below in 99.9 % of all cases."""
    return float(stats.binom.ppf(0.999, HELD_OUT, k / HELD_OUT)) / HELD_OUT


@pytest.fixture(scope="module")
def pairs() -> dual_prompt.Pictures:
    rows = [*world_facts("captions", "train", 300).captions.rows, *world_facts("captions", "val", 20).captions.rows]
    return dual_prompt.Pictures.read(CaptionData(rows, Pictures(), "captions"), "embedded")


@pytest.fixture(scope="module")
def trained(pairs: dual_prompt.Pictures, tmp_path_factory: pytest.TempPathFactory) -> dict[str, DualPromptRetriever]:
    """The CLIP as it is, and retrievers after the last step, whatever the selection would have kept."""
    rows = pairs.train.rows
    moved = np.random.default_rng(0).permutation(len(rows))
    shuffled = [replace(row, image=rows[k].image) for row, k in zip(rows, moved, strict=True)]
    recipe = Recipe(steps=40, batch=32, rate=0.02, measure_every=40)
    made = {"untuned": untuned()}
    for name, data in (("true", pairs.train), ("shuffled", pairs.train.with_rows(shuffled))):
        torch.manual_seed(0)
        retriever = dual_prompt.build(TWO_STAGES, pairs)
        task = RetrievalTask(retriever, replace(pairs, train=data), TWO_STAGES, recipe)
        train(task, recipe, tmp_path_factory.mktemp(name), lambda _: None, device="cpu")
        assert (retriever.card.weighting, retriever.card.strength) == ("two-stage", 0.5)
        made[name] = retriever
    return made


@pytest.fixture(scope="module")
def searched() -> Searched:
    """Search held-out pictures and captions; a retriever's scores are computed once."""
    data = world_facts("captions", "test", HELD_OUT).captions
    images = [Pictures().load(row.image) for row in data.rows]
    texts = [row.caption for row in data.rows]

    known: dict[int, tuple[Tensor, Tensor]] = {}

    def search(retriever: DualPromptRetriever, of: np.ndarray) -> dict[str, dict[int, float]]:
        if id(retriever) not in known:
            known[id(retriever)] = retriever.directed_scores(images, texts)
        rows, columns = known[id(retriever)]
        own = of[None] == np.arange(HELD_OUT)[:, None]
        return {"image_to_text": recall(places(rows, own)), "text_to_image": recall(places(columns, own.T))}

    return search


OWN = np.arange(HELD_OUT)


def test_shuffled_captions_teach_a_retriever_nothing(
    trained: dict[str, DualPromptRetriever], searched: Searched
) -> None:
    found = {name: searched(retriever, OWN) for name, retriever in trained.items()}
    for way in ("image_to_text", "text_to_image"):
        plain, learnt, wrong = (found[name][way] for name in ("untuned", "true", "shuffled"))
        assert learnt[1] > plain[1] - 0.05
        assert learnt[1] > 0.5
        # what the prompts don't overwrite of the CLIP below them is left, so a little above blind guessing
        assert wrong[1] <= luck(1) + 0.05
        assert wrong[10] < 0.4 * plain[10]


def test_captions_that_are_paired_anew_are_found_by_chance_alone(
    trained: dict[str, DualPromptRetriever], searched: Searched
) -> None:
    retriever = trained["true"]
    assert searched(retriever, OWN)["image_to_text"][1] > 0.5
    again = [searched(retriever, np.random.default_rng(seed).permutation(HELD_OUT)) for seed in range(10)]
    for way in ("image_to_text", "text_to_image"):
        for k in (1, 5, 10):
            assert np.mean([found[way][k] for found in again]) == pytest.approx(k / HELD_OUT, abs=0.03)


def test_a_captions_weights_for_other_pictures_do_not_depend_on_its_own_picture(
    trained: dict[str, DualPromptRetriever],
) -> None:
    data = world_facts("captions", "test", 12).captions
    images = [Pictures().load(row.image) for row in data.rows]
    texts = [row.caption for row in data.rows]
    before = trained["true"].directed_scores(images, texts)
    exchanged = [Image.effect_noise((96, 96), 60).convert("RGB"), *images[1:]]
    after = trained["true"].directed_scores(exchanged, texts)
    for one, other in zip(before, (after[0], after[1]), strict=True):
        assert not np.allclose(one, other, atol=1e-4)
    assert np.allclose(before[0][1:], after[0][1:], atol=1e-5)
    assert np.allclose(before[1][:, 1:], after[1][:, 1:], atol=1e-5)


def shuffled_within(data: RankData) -> RankData:
    """Give each object's values to other pictures, those that show none of it among them."""
    rng, images = np.random.default_rng(0), data.images
    rows = []
    for name in data.objects:
        to = dict(zip(images, (images[k] for k in rng.permutation(len(images))), strict=True))
        rows += [replace(row, image=to[row.image]) for row in data.rows if row.object == name]
    return data.with_rows(rows)


def test_values_shuffled_within_an_object_teach_a_ranker_nothing(tmp_path: Path) -> None:
    rows = [*world_facts("count", "train", 300).ranks.rows, *world_facts("count", "val", 120).ranks.rows]
    known = RankData(rows, Pictures(), "counts", exhaustive=sorted({row.object for row in rows}))
    pictures = ranker.Pictures.read(known.about(list(COUNTED)).teaching("skip"), LISTS)
    test = world_facts("count", "test", 250).ranks.about(list(COUNTED))
    lists = Lists.of(test)
    seen = Features(lists.images, test.load, ranker.encoder(ranker.build(LISTS, pictures.train), "frozen"))
    recipe = Recipe(steps=150, batch=32, rate=2e-3, measure_every=75)

    def measured(name: str, data: RankData) -> RankingFigures:
        made = ranker.fit(LISTS, replace(pictures, train=data), recipe, tmp_path / name, lambda _: None, device="cpu")
        return lists.figures(ranker.scored(made, lists, seen))

    true, shuffled = measured("true", pictures.train), measured("shuffled", shuffled_within(pictures.train))
    assert true.srcc > 0.5
    assert true.absence_auroc > 0.75
    assert abs(shuffled.srcc) < 0.15
    assert abs(shuffled.pair_accuracy - 0.5) < 0.07
    assert abs(shuffled.absence_auroc - 0.5) < 0.12
