"""The adapters of the embedded model: they load by name, know their world, and serve the guard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from lvlm_guard import guard, methods, unguard
from lvlm_guard.adapters import load_adapter
from lvlm_guard.adapters.data.read import world_facts
from lvlm_guard.adapters.evaluation.metrics import auroc
from lvlm_guard.adapters.matchers.clip import DualPromptMatcher
from lvlm_guard.adapters.matchers.ranker import RankerMatcher
from lvlm_guard.embedded.captioned import COUNTED, plan, scene
from lvlm_guard.embedded.world import CAPTION_PROMPT
from lvlm_guard.matching import Matcher, load_matcher
from lvlm_guard.matching.vocabulary import article
from lvlm_guard.pretrained import ask, load_model

NAMES = ["dual-prompt", "ranker"]


@pytest.fixture(scope="module")
def embedded() -> tuple[Any, Any]:
    return load_model()


def test_the_embedded_ranker_orders_pictures_that_it_has_not_seen() -> None:
    ranker = load_adapter("embedded-ranker")
    of = [plan("count", "test", k).groups[0] for k in range(300)]
    correlations = []
    for name in ("dog", "car", "apple"):
        chosen = [k for k, group in enumerate(of) if group.name == name]
        images = [Image.fromarray(scene("count", "test", k).image) for k in chosen]
        scores, logits = ranker.rank(images, ranker.card.asked(name))
        assert torch.equal(logits, -logits.T)
        correlations.append(stats.spearmanr(scores.numpy(), [of[k].count for k in chosen]).statistic)
    assert np.mean(correlations) > 0.5


def test_the_embedded_retriever_finds_captions_better_than_chance() -> None:
    retriever = load_adapter("embedded-dual-prompt")
    data = world_facts("captions", "test", 60).captions
    images = [data.load(row.image) for row in data.rows]
    scores = retriever.score(images, [row.caption for row in data.rows])
    assert float((scores.argmax(1) == torch.arange(60)).float().mean()) > 0.3


@pytest.mark.parametrize("name", NAMES)
def test_their_support_tells_what_is_there_from_what_is_not(name: str) -> None:
    matcher = load_matcher(f"embedded-{name}")
    there, absent = [], []
    for k in range(40):
        said = {group.name for group in plan("count", "test", k).groups}
        image = Image.fromarray(scene("count", "test", k).image)
        p = matcher.support(image, [f"is there {article(other)} {other} in the image?" for other in COUNTED])
        for other, value in zip(COUNTED, p.tolist(), strict=True):
            (there if other in said else absent).append(value)
    assert auroc(there, absent) > 0.75
    assert np.mean(there) > np.mean(absent)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", [methods.AGLA, methods.Vote])
def test_the_guard_runs_on_them_by_name(embedded: tuple[Any, Any], name: str, method: Callable[..., Any]) -> None:
    model, processor = guard(*embedded, method(matcher=name))
    try:
        image = Image.fromarray(scene("captions", "test", 0).image)
        prompts = [CAPTION_PROMPT, "is there a dog in the image ?"]
        inputs = ask(processor, [[image]] * 2, prompts)
        out = model.generate(**inputs, max_new_tokens=12, return_dict_in_generate=True, do_sample=False)
        assert out.sequences.shape[0] == 2
        assert len(out.guard.steps) == 2
    finally:
        unguard(model)
        unguard(processor)


@pytest.mark.parametrize(("name", "kind"), [("dual-prompt", DualPromptMatcher), ("ranker", RankerMatcher)])
def test_a_name_with_the_embedded_model_is_its_own_adapter(
    embedded: tuple[Any, Any], name: str, kind: type[Matcher]
) -> None:
    found = load_matcher(name, model=embedded[0])
    assert type(found) is kind
    assert found.version == load_matcher(f"embedded-{name}").version


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_their_maps_are_higher_on_the_object_than_beside_it(name: str) -> None:
    matcher = load_matcher(f"embedded-{name}")
    higher = []
    for k in range(60):
        drawn = scene("size", "test", k)
        inside = drawn.owner == 0
        (match,) = matcher([Image.fromarray(drawn.image)], [f"a photo of a {drawn.groups[0].name}"])
        relevance = match.relevance.numpy()
        higher.append(relevance[inside].mean() > relevance[~inside].mean())
    assert np.mean(higher) > 0.7
