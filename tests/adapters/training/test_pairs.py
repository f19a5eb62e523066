"""What a batch of pairs holds, and that its terms are those of cosines computed anew, one text at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from trainings import DUAL, recipe

from lvlm_guard.adapters.data import CaptionData, CaptionRow
from lvlm_guard.adapters.errors import TrainingError
from lvlm_guard.adapters.losses import LossStack
from lvlm_guard.adapters.retrieval.model import Features
from lvlm_guard.adapters.training import dual_prompt, ranker
from lvlm_guard.adapters.training.ranker import GroupBatches
from lvlm_guard.adapters.training.retrieval import RetrievalTask
from lvlm_guard.adapters.training.trainer import Numbered
from lvlm_guard.errors import KnobError

TAU = 0.06
NAMES = ("dog", "cat", "bus", "cup")


def task(pictures: dual_prompt.Pictures, losses: LossStack, *, strength: float = 0.0, alike: int = 1) -> RetrievalTask:
    torch.manual_seed(0)
    plan = replace(DUAL, strength=strength, losses=losses, alike=alike, tau=TAU)
    retriever = dual_prompt.build(plan, pictures)
    retriever.model.eval()
    return RetrievalTask(retriever, pictures, plan, recipe())


def named(caption: str) -> set[str]:
    """The objects of a caption of the world, by its words: "two red dogs and a cat"."""
    from lvlm_guard.embedded.world import CLASSES
    from lvlm_guard.matching.vocabulary import plural

    return {name for name in CLASSES if {name, plural(name)} & set(caption.replace(",", "").split())}


@pytest.mark.parametrize("strength", [0.0, 0.5], ids=["plain words", "weighed words"])
def test_every_picture_is_set_against_the_swaps_of_all_captions(
    caption_pictures: dual_prompt.Pictures, strength: float
) -> None:
    made = task(caption_pictures, LossStack(hard_negative=0, alpha=0, negclip=True), strength=strength)
    batch = made.batches.batch(0)
    loss, terms = made.loss(made.model, batch)
    image = made.retriever.image_features([caption_pictures.train.load(key) for key in batch.keys])
    texts = [*batch.captions, *(text for own in batch.swaps for text in own)]
    scores = image @ torch.cat([made.retriever.text_features([text]) for text in texts]).T / TAU
    for i, caption in enumerate(batch.captions):
        for j, text in enumerate(texts):
            if i != j and text == caption:
                scores[i, j] = -torch.inf
    n = len(batch.captions)
    own = torch.arange(n)
    expected = (cross_entropy(scores, own) + cross_entropy(scores[:, :n].T, own)) / 2
    assert len(texts) > 2 * n
    assert set(terms) == {"contrastive"}
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)


def test_claims_are_about_what_captions_of_the_batch_name_and_undecided_where_the_untuned_clip_is(
    caption_pictures: dual_prompt.Pictures,
) -> None:
    made = task(caption_pictures, LossStack(contrastive=0, hard_negative=0, claims=1.0))
    batch = made.batches.batch(0)
    objects = sorted(set().union(*map(named, batch.captions)))
    assert batch.claims == [f"a photo of {'an' if name[0] in 'aeiou' else 'a'} {name}" for name in objects]
    assert batch.claimed.tolist() == [[name in named(caption) for name in objects] for caption in batch.captions]
    assert torch.equal(batch.refuted, ~batch.claimed)  # of the world all is known
    image = made.retriever.image_features([caption_pictures.train.load(key) for key in batch.keys])
    z = (image @ made.retriever.text_features(batch.claims).T - made.undecided) / TAU
    expected = (z[batch.claimed].neg().exp().log1p().mean() + z[batch.refuted].exp().log1p().mean()) / 2
    assert made.loss(made.model, batch)[0].item() == pytest.approx(expected.item(), abs=1e-4)
    frozen = caption_pictures.frozen(caption_pictures.train.images)
    cosines = frozen @ made.retriever.frozen_features(texts=batch.claims)[1].T
    assert cosines.min() < made.undecided < cosines.max()


def test_pairs_of_a_category_come_together_and_an_epoch_still_takes_each_once(
    caption_pictures: dual_prompt.Pictures,
) -> None:
    plain, alike = (task(caption_pictures, LossStack(), alike=k) for k in (1, 4))
    size = recipe().batch
    each = len(caption_pictures.train.rows) // size

    def pairs(made: RetrievalTask) -> float:
        counts = [Counter(made.batches.batch(number).categories.tolist()) for number in range(each)]
        return sum(n * (n - 1) / 2 for count in counts for n in count.values())

    assert pairs(alike) > 2 * pairs(plain)
    drawn = [key for number in range(each) for key in alike.batches.batch(number).keys]
    assert len(drawn) == len(set(drawn)) == each * size
    first = alike.batches.batch(0).keys
    assert alike.batches.batch(each).keys != first
    assert first == task(caption_pictures, LossStack(), alike=4).batches.batch(0).keys
    with pytest.raises(KnobError, match="alike is 0"):
        replace(DUAL, alike=0)


def test_a_batch_that_names_no_object_makes_no_claims_and_trains_on(caption_pictures: dual_prompt.Pictures) -> None:
    made = task(caption_pictures, LossStack(claims=1.0))
    batch = made.batches.batch(0)
    none = replace(batch, claims=[], claimed=batch.claimed[:, :0], refuted=batch.refuted[:, :0])
    loss, terms = made.loss(made.model, none)
    assert terms["claims"] == 0
    assert loss.item() == pytest.approx(terms["contrastive"] + terms["hard_negative"], rel=1e-5)


def test_claims_without_any_object_that_is_known_are_refused(caption_pictures: dual_prompt.Pictures) -> None:
    rows = [replace(row, caption="something", category=None, attributes={}) for row in caption_pictures.train.rows]
    nameless = CaptionData(rows, caption_pictures.train.store, "nameless")
    with pytest.raises(TrainingError, match="no object is known to be in some and absent in others"):
        task(replace(caption_pictures, train=nameless), LossStack(claims=1.0))


def test_another_caption_of_a_picture_is_never_a_negative_of_it(caption_pictures: dual_prompt.Pictures) -> None:
    """Five captions a picture, all in one batch: with those of others alone the loss is the one computed by hand."""
    images = caption_pictures.train.images[:4]
    rows = [
        CaptionRow(image, f"caption {k} of a {name}")
        for image, name in zip(images, NAMES, strict=True)
        for k in range(5)
    ]
    five = replace(caption_pictures, train=CaptionData(rows, caption_pictures.train.store, "five"))
    plan = replace(DUAL, losses=LossStack(hard_negative=0, alpha=0, negclip=True), tau=TAU)
    torch.manual_seed(0)
    retriever = dual_prompt.build(plan, five)
    retriever.model.eval()
    made = RetrievalTask(retriever, five, plan, recipe(batch=20))
    batch = made.batches.batch(0)
    assert sorted(batch.captions) == sorted(row.caption for row in rows)
    own = [{row.caption for row in rows if row.image == key} for key in batch.keys]
    swaps = [text for each in batch.swaps for text in each]
    assert swaps
    assert all(text not in mine for mine, each in zip(own, batch.swaps, strict=True) for text in each)
    texts = [*batch.captions, *swaps]
    image = retriever.image_features([five.train.load(key) for key in batch.keys])
    scores = image @ retriever.text_features(texts).T / TAU
    for i, mine in enumerate(own):
        for j, text in enumerate(texts):
            if text in mine and j != i:
                scores[i, j] = -torch.inf
    n = torch.arange(20)
    expected = (cross_entropy(scores, n) + cross_entropy(scores[:, :20].T, n)) / 2
    assert made.loss(made.model, batch)[0].item() == pytest.approx(expected.item(), abs=1e-4)


def test_cosines_of_a_step_are_not_rounded_to_bfloat16(caption_pictures: dual_prompt.Pictures) -> None:
    made = task(caption_pictures, LossStack(claims=1.0, negclip=True))
    batch = made.batches.batch(0)
    seen: dict[str, torch.Tensor] = {}

    def features(**given: torch.Tensor) -> Features:  # those of the model, exact, whatever autocast would make of them
        with torch.autocast("cpu", enabled=False):
            found = made.model(**given)
        seen["image"], seen["text"] = found
        return found

    exact = made.loss(features, batch)[0]  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made.loss(features, batch)[0], exact)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pairs", "groups"])
def test_batches_are_made_alike_by_worker_processes_that_are_spawned(
    caption_pictures: dual_prompt.Pictures, ranked_pictures: ranker.Pictures, kind: str
) -> None:
    if kind == "pairs":
        batches: Any = task(caption_pictures, LossStack(claims=1.0)).batches
    else:
        batches = GroupBatches(ranked_pictures.train, ranked_pictures.seen, recipe())
    loader = DataLoader(
        Numbered(batches, 2, 1), batch_size=None, num_workers=1, multiprocessing_context="spawn", in_order=True
    )
    items = list(loader)
    assert [item["number"] for item in items] == [0, 1]
    for number, item in enumerate(items):
        made, expected = item["batch"], batches.batch(number)
        if kind == "pairs":
            assert (made.captions, made.swaps) == (expected.captions, expected.swaps)
            assert torch.equal(made.pixels, expected.pixels)
        else:
            assert made.instruction == expected.instruction
            assert torch.equal(made.seen, expected.seen)
