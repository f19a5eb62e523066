"""What a batch of pairs holds, and that its terms are those of cosines computed anew, one text at a time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy
from trainings import DUAL, recipe

from lvlm_guard.adapters.data import CaptionData
from lvlm_guard.adapters.losses import LossStack
from lvlm_guard.adapters.training import dual_prompt
from lvlm_guard.adapters.training.errors import TrainingError
from lvlm_guard.adapters.training.retrieval import RetrievalTask
from lvlm_guard.errors import KnobError

TAU = 0.06


def task(pictures: dual_prompt.Pictures, losses: LossStack, *, strength: float = 0.0, alike: int = 1) -> RetrievalTask:
    torch.manual_seed(0)
    retriever = dual_prompt.build(replace(DUAL, strength=strength, losses=losses), pictures)
    retriever.model.eval()
    return RetrievalTask(
        retriever,
        pictures.train,
        pictures.gallery,
        pictures.pixels,
        losses,
        recipe(),
        pictures.bank,
        pictures.frozen,
        alike,
    )


def named(caption: str) -> set[str]:
    """The objects of a caption of the world, by its words: "two red dogs and a cat"."""
    from lvlm_guard.embedded.world import CLASSES
    from lvlm_guard.matching.vocabulary import plural

    return {name for name in CLASSES if {name, plural(name)} & set(caption.replace(",", "").split())}


@pytest.mark.parametrize("strength", [0.0, 0.5], ids=["plain words", "weighed words"])
def test_every_picture_is_set_against_the_swaps_of_all_captions(
    caption_pictures: dual_prompt.Pictures, strength: float
) -> None:
    made = task(caption_pictures, LossStack(hard_negative=0, alpha=0, negclip=True, tau=TAU), strength=strength)
    batch = made.batch(0)
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
    made = task(caption_pictures, LossStack(contrastive=0, hard_negative=0, claims=1.0, tau=TAU))
    batch = made.batch(0)
    objects = sorted(set().union(*map(named, batch.captions)))
    assert batch.claims == [f"a photo of {'an' if name[0] in 'aeiou' else 'a'} {name}" for name in objects]
    assert batch.claimed.tolist() == [[name in named(caption) for name in objects] for caption in batch.captions]
    image = made.retriever.image_features([caption_pictures.train.load(key) for key in batch.keys])
    z = (image @ made.retriever.text_features(batch.claims).T - made.undecided) / TAU
    expected = (z[batch.claimed].neg().exp().log1p().mean() + z[~batch.claimed].exp().log1p().mean()) / 2
    assert made.loss(made.model, batch)[0].item() == pytest.approx(expected.item(), abs=1e-4)
    frozen = caption_pictures.frozen(caption_pictures.train.images)[1]
    cosines = frozen @ made.retriever.frozen_features(texts=batch.claims)[1].T
    assert cosines.min() < made.undecided < cosines.max()


def test_pairs_of_a_category_come_together_and_an_epoch_still_takes_each_once(
    caption_pictures: dual_prompt.Pictures,
) -> None:
    plain, alike = (task(caption_pictures, LossStack(), alike=k) for k in (1, 4))
    size = recipe().batch
    each = len(caption_pictures.train.rows) // size

    def pairs(made: RetrievalTask) -> float:
        counts = [Counter(made.batch(number).categories.tolist()) for number in range(each)]
        return sum(n * (n - 1) / 2 for count in counts for n in count.values())

    assert pairs(alike) > 2 * pairs(plain)
    drawn = [key for number in range(each) for key in alike.batch(number).keys]
    assert len(drawn) == len(set(drawn)) == each * size
    assert alike.batch(each).keys != alike.batch(0).keys
    assert alike.batch(0).keys == task(caption_pictures, LossStack(), alike=4).batch(0).keys
    with pytest.raises(KnobError, match="alike is 0"):
        replace(DUAL, alike=0)


def test_a_batch_that_names_no_object_makes_no_claims_and_trains_on(caption_pictures: dual_prompt.Pictures) -> None:
    made = task(caption_pictures, LossStack(claims=1.0, tau=TAU))
    batch = made.batch(0)
    none = replace(batch, claims=[], claimed=batch.claimed[:, :0])
    loss, terms = made.loss(made.model, none)
    assert terms["claims"] == 0
    assert loss.item() == pytest.approx(terms["contrastive"] + terms["hard_negative"], rel=1e-5)


def test_claims_without_any_object_that_is_known_are_refused(caption_pictures: dual_prompt.Pictures) -> None:
    rows = [replace(row, caption="something", category=None, attributes={}) for row in caption_pictures.train.rows]
    nameless = CaptionData(rows, caption_pictures.train.store, "nameless")
    with pytest.raises(TrainingError, match="name no object"):
        task(replace(caption_pictures, train=nameless), LossStack(claims=1.0))
