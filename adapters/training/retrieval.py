"""What a retriever learns by: pairs, their captions' swaps, claims, and DCAR's losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lvlm_guard.adapters.data import CaptionData, CaptionRow
from lvlm_guard.adapters.data.pictures import Features
from lvlm_guard.adapters.data.views import squeezed
from lvlm_guard.adapters.errors import TrainingError
from lvlm_guard.adapters.evaluation.gallery import NEGATIVES, swapped
from lvlm_guard.adapters.evaluation.metrics import Candidate
from lvlm_guard.adapters.losses import LossInputs
from lvlm_guard.adapters.prompts.heads import parted, single
from lvlm_guard.adapters.prompts.producers import Gated
from lvlm_guard.adapters.retrieval.bank import WordBank
from lvlm_guard.adapters.retrieval.claims import Claims, Known, known_of
from lvlm_guard.adapters.retrieval.folder import untuned
from lvlm_guard.adapters.retrieval.retriever import DualPromptRetriever
from lvlm_guard.adapters.terms import regulated, unchanged
from lvlm_guard.adapters.training.beside import Beside, Teacher
from lvlm_guard.adapters.training.recipe import Figures, Recipe, learning
from lvlm_guard.adapters.training.tasks import gathered, share_of
from lvlm_guard.matching.platt import platt

if TYPE_CHECKING:
    from lvlm_guard.adapters.training.dual_prompt import Pictures, Plan

CLAIMS = 64
"""Objects asked about in a batch: those that its pictures show most."""

UNDECIDED = 2000
"""Pictures by which is found where the untuned CLIP is undecided."""


@dataclass(frozen=True)
class Pairs:
    """A batch of n pairs.

    Args:
        keys: of the pictures.
        pixels: [of this process's share, 3, side, side]; None where the pictures' features are frozen.
        captions: n.
        true: [n, n] bool: which caption is true of which picture.
        swaps: of each caption, up to `NEGATIVES`.
        crossed: [n, all swaps] bool: which swaps may be true of which picture, so that they are no negatives of it.
        categories: [n], negative for none.
        claims: about objects that pictures of the batch show.
        claimed, refuted: [n, claims] bool: which hold of which picture, and which don't.
        share, of: which of the pairs this process encodes: every `of`-th from `share` on.
        after: what is learnt by after a step on this, under the rule "meta".
    """

    keys: list[str]
    pixels: Tensor | None
    captions: list[str]
    true: Tensor
    swaps: list[list[str]]
    crossed: Tensor
    categories: Tensor
    claims: list[str]
    claimed: Tensor
    refuted: Tensor
    share: int = 0
    of: int = 1
    after: Pairs | None = None


class PairBatches:
    """Makes batches of pairs.

    Args:
        data: to train on.
        source: pixels of its pictures; None where their features are frozen.
        plan: its losses decide what a batch holds.
        recipe: how.
        bank: makes swaps where rows have none.
    """

    shares = True

    def __init__(self, data: CaptionData, source: Features | None, plan: Plan, recipe: Recipe, bank: WordBank) -> None:
        self.data, self.source, self.plan, self.recipe, self.bank = data, source, plan, recipe, bank
        self.halves = plan.losses.rule == "meta"
        self.size = max(2, min(recipe.batch, len(data.rows)) // (1 + self.halves))
        self.each = max(1, len(data.rows) // self.size)
        names = dict.fromkeys(row.category for row in data.rows if row.category)
        self.categories = {name: k for k, name in enumerate(names)}
        self.swapping = "hard_negative" in plan.losses.active or plan.losses.negclip
        self.judging = "claims" in plan.losses.active or bool({"said", "names"} & plan.losses.needs)
        self._ordered: tuple[int, list[int]] = -1, []
        self._known: dict[str, Known] = {}
        self._swaps: dict[int, list[str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_swaps": {}, "_known": {}}

    def batch(self, number: int, share: int = 0, of: int = 1) -> Pairs:
        """Return batch `number`; an epoch goes through the pairs once, in an order of its own."""
        if not self.halves:
            return self._batch(number, share, of)
        first, second = (self._batch(2 * number + k, share, of) for k in range(2))
        return replace(first, after=second)

    def _batch(self, number: int, share: int, of: int) -> Pairs:
        chosen = self._order(number // self.each)[(number % self.each) * self.size :][: self.size]
        rows = [self.data.rows[k] for k in chosen]
        pixels = None
        if self.source is not None:
            pixels = self.source([rows[k].image for k in share_of(len(rows), share, of)])
        rng = np.random.default_rng((self.recipe.seed, number, 1))
        swaps: list[list[str]] = []
        for k in chosen if self.swapping else ():
            own = self._swapped(k)
            swaps.append([own[int(place)] for place in rng.permutation(len(own))[:NEGATIVES]])
        captions = [row.caption for row in rows]
        made = Claims.of([self.known(row.image) for row in rows] if self.judging else [], CLAIMS, self.plan.withheld)
        return Pairs(
            [row.image for row in rows],
            pixels,
            captions,
            self._true(rows, captions),
            swaps,
            self._true(rows, [text for own in swaps for text in own]),
            torch.tensor([self.categories[row.category] if row.category else -1 for row in rows]),
            made.texts,
            torch.from_numpy(made.true),
            torch.from_numpy(made.false),
            share,
            of,
        )

    def known(self, image: str) -> Known:
        """Return what is known of a picture's objects, read when first asked."""
        if not self._known:
            find = known_of(self.data, self.bank)
            self._known = {key: find(key) for key in self.data.images}
        return self._known[image]

    def _swapped(self, k: int) -> list[str]:
        if k not in self._swaps:
            row = self.data.rows[k]
            known = (frozenset[str](), frozenset[str]()) if row.negatives else self.known(row.image)
            made = swapped(row, self.bank, self.data, known, seed=self.recipe.seed)
            self._swaps[k] = [text for text, _ in made]
        return self._swaps[k]

    def _true(self, rows: Sequence[CaptionRow], texts: Sequence[str]) -> Tensor:
        """[n, texts] bool: which texts are a caption of which row's picture."""
        read = list(map(squeezed, texts))
        own = [set(map(squeezed, self.data.captions_of[row.image])) for row in rows]
        table = [[text in mine for text in read] for mine in own]
        return torch.tensor(table, dtype=torch.bool).reshape(len(rows), len(read))

    def _order(self, epoch: int) -> list[int]:
        """Return the pairs in an order of this epoch, in which `alike` of one category come one after another."""
        if self._ordered[0] != epoch:
            rng = np.random.default_rng((self.recipe.seed, epoch))
            order = [int(k) for k in rng.permutation(len(self.data.rows))]
            alike = self.plan.alike
            if alike > 1:
                of: dict[str | None, list[int]] = {}
                for k in order:
                    of.setdefault(self.data.rows[k].category, []).append(k)
                cut = [mine[at : at + alike] for mine in of.values() for at in range(0, len(mine), alike)]
                order = [k for which in rng.permutation(len(cut)) for k in cut[which]]
            self._ordered = epoch, order
        return self._ordered[1]


class RetrievalTask:
    """Trains a retriever's prompts.

    Args:
        retriever: to train.
        pictures: what it learns from and is measured on. Their frozen features serve word weights, terms that hold on
            to them, and instead of pixels where no prompt changes the pictures' side.
        plan: what is learnt by.
        recipe: how.
    """

    keeps_all = True

    def __init__(self, retriever: DualPromptRetriever, pictures: Pictures, plan: Plan, recipe: Recipe) -> None:
        self.retriever, self.model = retriever, retriever.model
        self.gallery, self.pixels, self.frozen = pictures.gallery, pictures.pixels, pictures.frozen
        self.losses = replace(plan.losses, tau=plan.tau or retriever.model.tau)
        config, images = retriever.config, pictures.train.images
        self.still = config is not None and config.sides == "text" and not config.headed
        self.experts = config.ensemble if config is not None else 1
        self.width = int(self.model.base.config.projection_dim)
        source = None if self.still else pictures.pixels
        self.batches = PairBatches(pictures.train, source, plan, recipe, pictures.bank)
        self.undecided = self._undecided(images) * self.model.gain if self.batches.judging else 0.0
        distilled = bool(plan.teacher) and "teacher" in self.losses.needs
        teacher = Teacher.of(untuned(plan.teacher), pictures.train) if distilled else None
        active = self.losses.active
        self.beside = Beside(retriever, self.batches, self.losses.needs, active, pictures.bank, self.frozen, teacher)
        head = getattr(self.model.base.visual_projection, "current", None)
        if self.batches.judging and head is not None and head.classes:  # scores begin where cosines say neither
            nn.init.constant_(head.score.bias, self.undecided / self.model.gain / self.losses.tau)

    def loss(self, model: nn.Module, batch: Pairs) -> tuple[Tensor, dict[str, float]]:
        """Return DCAR's loss, or what the stack was told, over the pairs of all processes."""
        if batch.after is None:
            return self._loss(model, batch)
        # the inner gradient is taken as a constant: of first order, which any attention can do
        learnt, rate = learning(self.model), self.batches.recipe.rate
        inner = self._loss(model, batch)[0]
        slopes = torch.autograd.grad(inner, [*learnt.values()], allow_unused=True)
        gates: Any = next((made.gates for made in self.model.modules() if isinstance(made, Gated)), {})
        stepped = {}
        for (name, value), slope in zip(learnt.items(), slopes, strict=True):
            if slope is not None:
                side = "text" if ".text_model." in name else "vision"
                stepped[name] = value - rate * regulated(slope, gates.get(side))
        return self._loss(lambda **given: functional_call(self.model, stepped, (), given), batch.after)

    def _loss(self, model: Callable[..., Any], batch: Pairs) -> tuple[Tensor, dict[str, float]]:
        n, device = len(batch.captions), self.model.device
        weighed = list(range(n)) if batch.swaps and self.retriever.card.strength > 0 else []
        owner = [k for k, own in enumerate(batch.swaps) for _ in own]
        swaps = [text for own in batch.swaps for text in own]
        texts = [*batch.captions, *(batch.captions[k] for k in weighed), *swaps]
        weighable = len(texts)
        # weights of one picture must not tell another picture anything
        crossed = swaps if weighed and self.losses.negclip else []
        texts += [self.retriever.said(one)[0] for one in batch.claims] + crossed + self.beside.texts
        inputs = self.retriever.text_inputs(texts)
        frozen = self.frozen(batch.keys).to(device)
        factors = None
        if weighed:
            factors = torch.ones(inputs.input_ids.shape)
            own = inputs[list(range(n, weighable))]
            factors[n:weighable] = self.retriever.factors(frozen[[*range(n), *owner]].cpu(), own)
        mine = share_of(len(texts), batch.share, batch.of)
        pictures = self.beside.pictures(None if batch.pixels is None else batch.pixels.to(device))
        seen = model(
            pixel_values=torch.cat([*pictures.values()]) if pictures else None,
            input_ids=inputs.input_ids[mine],
            attention_mask=inputs.attention_mask[mine],
            factors=None if factors is None else factors[mine].to(device),
        )
        shown = () if seen.image is None else seen.image.split([len(part) for part in pictures.values()])
        given: dict[str, Any] = {
            name: gathered(part, 1 if name == "null_image" else n) for name, part in zip(pictures, shown, strict=True)
        }
        image = given.get("image", frozen)
        parts = [n, len(weighed), len(owner), len(batch.claims), len(crossed), len(self.beside.texts)]
        text, own, swap, claims, crossing, read = gathered(seen.text, len(texts)).split(parts)
        with unchanged(image):  # a cosine in bfloat16 is off by a nat at CLIP's temperature
            given = {name: self._single(part) for name, part in given.items()} | {
                "scores": image @ text.T,
                "categories": batch.categories.to(device),
                "same": batch.true.to(device),
                "image": self._single(image),
                "text": self._single(text),
                "experts": parted(text, self.experts, self.width),
            }
            if weighed:
                given["positive"] = (image * own).sum(-1)
            if batch.swaps:
                most = max(map(len, batch.swaps))
                present = torch.tensor([[k < len(mine) for k in range(most)] for mine in batch.swaps], device=device)
                each = torch.zeros(n, most, device=device, dtype=image.dtype)
                given["present"] = present
                given["negatives"] = each.masked_scatter(present, (image[owner] * swap).sum(-1))
            if self.losses.negclip:
                against = image @ (crossing if weighed else swap).T
                given["swaps"] = against.masked_fill(batch.crossed.to(device), -torch.inf)
            if self.batches.judging:
                given["claims"] = self.retriever.cosines(image, batch.claims, claims) - self.undecided
                given["claimed"], given["refuted"] = batch.claimed.to(device), batch.refuted.to(device)
            if self.losses.needs_frozen:
                given["frozen_image"] = frozen
                given["frozen_text"] = self.retriever.frozen_features(texts=batch.captions)[1].to(device)
            given |= self.beside.given(batch, self._single(claims), self._single(read), frozen)
            value = self.losses(LossInputs(**given), [*learning(self.model).values()])
        return value.total, value.terms

    def _single(self, features: Tensor) -> Tensor:
        return single(features, self.experts, self.width)

    def measure(self) -> Figures:
        """Return recall both ways on the validation's gallery with its swaps, the verifier's AUROC, and their score."""
        figures = self.gallery.searched(self.retriever, self.pixels).figures()
        return scored(figures, claims="claims" in self.losses.active)

    def _undecided(self, images: Sequence[str]) -> float:
        """Return the cosine at which the untuned CLIP can't say whether an object is in a picture."""
        images = images[:UNDECIDED]
        made = Claims.of([self.batches.known(image) for image in images], without=self.batches.plan.withheld)
        if not made.telling:
            raise TrainingError(
                f"Of the first {len(images)} pictures no object is known to be in some and absent in others, so there "
                'are no claims to learn. What a caption does not name is not known to be absent: give "objects" and '
                '"exhaustive" (see lvlm_guard.adapters.data), or leave out --claims.'
            )
        cosines = self.frozen(images) @ self.retriever.frozen_features(texts=made.texts)[1].T
        scores, true = made.judged(cosines.double().numpy())
        slope, offset = platt(scores, true, balanced=True)
        # a CLIP that can't tell at all has a slope near 0, and its crossing anywhere
        return float(np.clip(-offset / slope, scores.min(), scores.max()))

    def better(self, figures: Figures, best: Figures | None) -> bool:
        """Return whether the score is higher: never the training loss."""
        return best is None or figures["score"] > best["score"]


def scored(figures: Figures, *, claims: bool = False) -> dict[str, float]:
    """Return figures with the score by which candidates are chosen; `claims`: those count in it."""
    return {**figures, "score": Candidate(0, figures, claims=claims).score}
