"""What a retriever learns by: pairs, their captions' swaps, and DCAR's losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lvlm_guard.adapters.data import CaptionData, CaptionRow
from lvlm_guard.adapters.data.captions import squeezed
from lvlm_guard.adapters.evaluation.gallery import NEGATIVES, Gallery, swapped
from lvlm_guard.adapters.losses import LossInputs, LossStack
from lvlm_guard.adapters.retrieval.bank import WordBank
from lvlm_guard.adapters.retrieval.claims import Claims, names_of
from lvlm_guard.adapters.retrieval.metrics import AT, RetrievalFigures
from lvlm_guard.adapters.retrieval.retriever import DualPromptRetriever
from lvlm_guard.adapters.retrieval.selection import Candidate
from lvlm_guard.adapters.training.errors import TrainingError
from lvlm_guard.adapters.training.features import Features
from lvlm_guard.adapters.training.recipe import Recipe
from lvlm_guard.adapters.training.task import Figures
from lvlm_guard.matching.platt import platt

CLAIMS = 64
"""Objects asked about in a batch: those that its captions name most."""

UNDECIDED = 2000
"""Pictures by which is found where the untuned CLIP is undecided."""


@dataclass(frozen=True)
class Pairs:
    """A batch of n pairs.

    Args:
        keys: of the pictures.
        pixels: [n, 3, side, side]; None where the pictures' features are frozen.
        captions: n.
        swaps: of each caption, up to `NEGATIVES`.
        categories: [n], negative for none.
        claims: about objects that captions of the batch name.
        claimed: [n, claims] bool: which hold of which picture.
    """

    keys: list[str]
    pixels: Tensor | None
    captions: list[str]
    swaps: list[list[str]]
    categories: Tensor
    claims: list[str]
    claimed: Tensor


class RetrievalTask:
    """Trains a retriever's prompts and category block.

    Args:
        retriever: to train.
        train: pairs.
        gallery: of validation.
        pixels: of the pictures of both.
        losses: what is learnt by.
        recipe: how.
        bank: makes swaps where rows have none.
        frozen: features of the untuned CLIP for the training pictures; needed for word weights, for terms that
            hold on to them, and instead of pixels where no prompt changes the pictures' side. None: of none.
        alike: pairs of one category that a batch takes together, so that what it sets apart is alike.
    """

    keeps_all = True

    def __init__(
        self,
        retriever: DualPromptRetriever,
        train: CaptionData,
        gallery: Gallery,
        pixels: Features,
        losses: LossStack,
        recipe: Recipe,
        bank: WordBank,
        frozen: Features | None,
        alike: int = 1,
    ) -> None:
        self.retriever, self.model = retriever, retriever.model
        self.rows, self.gallery, self.pixels = train.rows, gallery, pixels
        self.losses, self.recipe, self.frozen = losses, recipe, frozen
        self._categories = {
            name: k for k, name in enumerate(dict.fromkeys(row.category for row in self.rows if row.category))
        }
        self.alike, self._ordered = alike, (-1, [0])
        self._judging = "claims" in losses.active
        config = retriever.config
        self.still = config is not None and config.vision_slots == 0
        if (self.still or retriever.card.strength > 0 or losses.needs_frozen or self._judging) and frozen is None:
            raise TrainingError("This training needs features of the untuned CLIP, and none were given.")
        self._swaps: Callable[[int], list[str]] = lru_cache(maxsize=None)(
            lambda k: [text for text, _ in swapped(self.rows[k], bank, seed=recipe.seed)]
        )
        self._named = names_of(self.rows, bank)
        self.undecided = self._undecided(train.images) if self._judging else 0.0

    def batch(self, number: int) -> Pairs:
        """Return batch `number`; an epoch goes through the pairs once, in an order of its own."""
        size = min(self.recipe.batch, len(self.rows))
        each = max(1, len(self.rows) // size)
        chosen = self._order(number // each)[(number % each) * size :][:size]
        source = self.frozen if self.still else self.pixels
        assert source is not None
        places, tensor = source([self.rows[k].image for k in chosen])
        if not places:
            raise TrainingError(f"None of the {size} pictures of batch {number} can be read. {source.bad[0].reason}")
        rng = np.random.default_rng((self.recipe.seed, number, 1))
        rows = [self.rows[chosen[place]] for place in places]
        swaps = []
        if "hard_negative" in self.losses.active or self.losses.negclip:
            for place in places:
                own = self._swaps(chosen[place])
                swaps.append([own[int(k)] for k in rng.permutation(len(own))[:NEGATIVES]])
        return Pairs(
            [row.image for row in rows],
            None if self.still else tensor,
            [row.caption for row in rows],
            swaps,
            torch.tensor([self._categories[row.category] if row.category else -1 for row in rows]),
            *self._claims(rows),
        )

    def _order(self, epoch: int) -> list[int]:
        """Return the pairs in an order of this epoch, in which `alike` of one category come one after another."""
        if self._ordered[0] != epoch:
            rng = np.random.default_rng((self.recipe.seed, epoch))
            order = [int(k) for k in rng.permutation(len(self.rows))]
            if self.alike > 1:
                of: dict[str | None, list[int]] = {}
                for k in order:
                    of.setdefault(self.rows[k].category, []).append(k)
                cut = [mine[at : at + self.alike] for mine in of.values() for at in range(0, len(mine), self.alike)]
                order = [k for which in rng.permutation(len(cut)) for k in cut[which]]
            self._ordered = epoch, order
        return self._ordered[1]

    def _claims(self, rows: Sequence[CaptionRow]) -> tuple[list[str], Tensor]:
        """Return claims about what captions of a batch name, and [n, claims]: of which pictures they hold."""
        if not self._judging:
            return [], torch.zeros(len(rows), 0, dtype=torch.bool)
        made = Claims.of([self._named(row.image) for row in rows], CLAIMS)
        return made.texts, torch.from_numpy(made.true)

    def loss(self, model: nn.Module, batch: Pairs) -> tuple[Tensor, dict[str, float]]:
        """Return DCAR's loss, or what the stack was told."""
        n, device = len(batch.captions), self.model.device
        strength, negative = self.retriever.card.strength, bool(batch.swaps)
        owner = [k for k, own in enumerate(batch.swaps) for _ in own]
        weighed = list(range(n)) if negative and strength > 0 else []
        swaps = [text for own in batch.swaps for text in own]
        texts = [*batch.captions, *(batch.captions[k] for k in weighed), *swaps]
        weighable = len(texts)
        # weights of one picture must not tell another picture anything
        texts += batch.claims + (swaps if weighed and self.losses.negclip else [])
        inputs = self.retriever.text_inputs(texts)
        frozen = None if self.frozen is None else self.frozen(batch.keys)[1]
        factors = None
        if weighed:
            assert frozen is not None
            of = [*range(n), *owner]
            factors = torch.ones(inputs.input_ids.shape)
            factors[n:weighable] = self.retriever.factors(frozen[of], inputs[list(range(n, weighable))])
            factors = factors.to(device)
        seen = model(
            pixel_values=None if batch.pixels is None else batch.pixels.to(device),
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            factors=factors,
        )
        image = frozen.to(device) if seen.image is None and frozen is not None else seen.image
        parts = [n, len(weighed), len(owner), len(batch.claims)]
        text, own, swap, claims, crossing = seen.text.split([*parts, len(texts) - sum(parts)])
        given: dict[str, Any] = {
            "scores": image @ text.T,
            "categories": batch.categories.to(device),
            "same": _equal(batch.captions, batch.captions).to(device),
            "image": image,
            "text": text,
        }
        if weighed:
            given["positive"] = (image * own).sum(-1)
        if negative:
            most = max(map(len, batch.swaps))
            present = torch.zeros(n, most, dtype=torch.bool)
            for k, mine in enumerate(batch.swaps):
                present[k, : len(mine)] = True
            each = torch.zeros(n, most, device=device, dtype=image.dtype)
            given["present"] = present.to(device)
            given["negatives"] = each.masked_scatter(given["present"], (image[owner] * swap).sum(-1))
        if self.losses.negclip:
            alike = _equal(batch.captions, swaps).to(device)
            given["swaps"] = (image @ (crossing if weighed else swap).T).masked_fill(alike, -torch.inf)
        if self._judging:
            given["claims"] = image @ claims.T - self.undecided
            given["claimed"] = batch.claimed.to(device)
        if self.losses.needs_frozen:
            assert frozen is not None
            given["frozen_image"] = frozen.to(device)
            given["frozen_text"] = self.retriever.frozen_features(texts=batch.captions)[1].to(device)
        value = self.losses(LossInputs(**given))
        return value.total, value.terms

    def measure(self) -> Figures:
        """Return recall both ways on the validation's gallery with its swaps, the verifier's AUROC, and their score."""
        figures = self.gallery.searched(self.retriever, self.pixels).figures()
        return flat(figures, claims=self._judging)

    def _undecided(self, images: Sequence[str]) -> float:
        """Return the cosine at which the untuned CLIP can't say whether an object is in a picture."""
        assert self.frozen is not None
        images = images[:UNDECIDED]
        places, features = self.frozen(images)
        made = Claims.of([self._named(images[place]) for place in places])
        if not made.telling:
            raise TrainingError(
                f"The captions of the first {len(images)} pictures name no object that the word bank knows, or all the "
                "same, so there are no claims to learn: give rows a category, or leave out --claims."
            )
        cosines = (features @ self.retriever.frozen_features(texts=made.texts)[1].T).double().numpy()
        slope, offset = platt(cosines.ravel(), made.true.ravel(), balanced=True)
        # a CLIP that can't tell at all has a slope near 0, and its crossing anywhere
        return float(np.clip(-offset / slope, cosines.min(), cosines.max()))

    def better(self, figures: Figures, best: Figures | None) -> bool:
        """Return whether the score is higher: never the training loss."""
        return best is None or figures["score"] > best["score"]


def flat(figures: RetrievalFigures, *, claims: bool = False) -> dict[str, float]:
    """Return figures by name, and the score by which candidates are chosen; `claims`: those count in it."""
    ways = {"i2t": figures.image_to_text, "t2i": figures.text_to_image}
    made = {f"{way}_r{k}": found[k] for way, found in ways.items() for k in AT}
    score = Candidate(0, figures, claims=claims).score
    return made | {"auroc": figures.auroc, "claims": figures.claims, "score": score}


def unflat(made: Figures) -> RetrievalFigures:
    """Return what `flat` made flat."""
    i2t, t2i = ({k: made[f"{way}_r{k}"] for k in AT} for way in ("i2t", "t2i"))
    return RetrievalFigures(i2t, t2i, made["auroc"], claims=made["claims"])


def _equal(captions: Sequence[str], others: Sequence[str]) -> Tensor:
    """[n, m] bool: which captions say the same as which others."""
    number = {text: k for k, text in enumerate(dict.fromkeys(map(squeezed, [*captions, *others])))}
    one, other = (torch.tensor([number[squeezed(text)] for text in texts]) for texts in (captions, others))
    return one[:, None] == other[None]
