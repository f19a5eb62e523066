"""Batches of pairs that a retriever learns by, and what terms of a loss need beside their features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lvlm_guard.adapters.backbone import masked, salient
from lvlm_guard.adapters.data import CaptionData, CaptionRow
from lvlm_guard.adapters.data.dataset import squeezed
from lvlm_guard.adapters.data.pictures import Features
from lvlm_guard.adapters.evaluation.gallery import NEGATIVES, swapped
from lvlm_guard.adapters.retrieval.bank import WordBank
from lvlm_guard.adapters.retrieval.claims import Claims, Known, claim, known_of
from lvlm_guard.adapters.retrieval.folder import untuned
from lvlm_guard.adapters.retrieval.retriever import DualPromptRetriever
from lvlm_guard.adapters.terms import AIDS
from lvlm_guard.adapters.testtime import mine
from lvlm_guard.adapters.training.recipe import Recipe

if TYPE_CHECKING:
    from lvlm_guard.adapters.training.dual_prompt import Pictures, Plan

CLAIMS = 64  # objects asked about in a batch: those that its pictures show most
KEPT = 0.75  # share of the patches that stay, DiSa's [R]
FAR = 64  # names that pictures are set against
# fmt: off
NULL = ("in my opinion", "on the other hand", "thank you very much", "that is not always so", "of course",
        "nobody knows why", "it depends", "this is what was said before", "see you then", "to be honest", "in the end",
        "what does it mean", "as far as we can tell", "better late than never", "by and large", "for example")
# fmt: on
"""Texts that evoke no picture."""


@dataclass(frozen=True)
class Pairs:
    """A batch of n pairs.

    Args:
        keys, captions, categories: n each; a category is negative for none.
        pixels: [of this process's share, 3, side, side]; None where the pictures' features are frozen.
        true: [n, n] bool: which caption is true of which picture.
        swaps: of each caption, up to `NEGATIVES`.
        crossed: [n, all swaps] bool: which swaps may be true of which picture, so that they are no negatives of it.
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
    """Makes batches of pairs; the plan's losses decide what they hold.

    `source` gives pictures' pixels, None where their features are frozen; the bank makes swaps where rows have none.
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
        keys, captions = [row.image for row in rows], [row.caption for row in rows]
        rng = np.random.default_rng((self.recipe.seed, number, 1))
        swaps: list[list[str]] = []
        for k in chosen if self.swapping else ():
            own = self._swapped(k)
            swaps.append([own[int(place)] for place in rng.permutation(len(own))[:NEGATIVES]])
        made = Claims.of([self.known(key) for key in keys] if self.judging else [], CLAIMS, self.plan.withheld)
        judged = made.texts, torch.from_numpy(made.true), torch.from_numpy(made.false)
        pixels = None if self.source is None else self.source([keys[k] for k in share_of(len(keys), share, of)])
        crossed = self._true(rows, [text for own in swaps for text in own])
        categories = torch.tensor([self.categories[row.category] if row.category else -1 for row in rows])
        true = self._true(rows, captions)
        return Pairs(keys, pixels, captions, true, swaps, crossed, categories, *judged, share, of)

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
            self._swaps[k] = [text for text, _ in swapped(row, self.bank, self.data, known, seed=self.recipe.seed)]
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


def share_of(total: int, index: int, world: int) -> list[int]:
    """Return the rows that a process takes of `total`: every n-th, the first again where there are fewer."""
    each = -(-total // world)
    return [k if k < total else 0 for k in (index + step * world for step in range(each))]


def gathered(part: Tensor, total: int) -> Tensor:
    """Return the rows of all processes in their order, [total, d], from [ceil(total / processes), d] of `share_of`.

    The gradient of each row is the sum over processes; averaged by distributed training, parameters have the gradient
    of the whole batch.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return part
    everyones: Tensor = _Gathered.apply(part)  # type: ignore[no-untyped-call]
    return everyones.transpose(0, 1).reshape(-1, part.shape[-1])[:total]


class _Gathered(torch.autograd.Function):
    """The tensors of all processes, [processes, ...]; torch's own is deprecated in new releases."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        parts = [torch.empty_like(part) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, part.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        everyones = gradients[0].contiguous()
        torch.distributed.all_reduce(everyones)
        return everyones[torch.distributed.get_rank()]


def null_image(side: int) -> Tensor:
    """Return the picture that stands for none, pixels of fixed noise, [1, 3, side, side]."""
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))


class Teacher(NamedTuple):
    """A CLIP to learn from: itself as a retriever, and its features of the training pictures."""

    retriever: DualPromptRetriever
    images: Features

    @classmethod
    def of(cls, retriever: DualPromptRetriever, train: CaptionData) -> Teacher:
        """Return a teacher that has read the pictures."""
        return cls(retriever, Features(train.images, train.load, retriever.image_features))

    def logits(self, images: Sequence[str], captions: Sequence[str]) -> Tensor:
        """Return its logits of pictures with captions, [n, m]."""
        text = self.retriever.text_features(captions)
        return self.images(images) @ text.T / self.retriever.model.tau


class Beside:
    """Gives terms what they need; nothing is computed that none needs.

    Modules that learn beside the retriever's prompts become its model's `aids`. Names far from all claims are looked
    for in the pictures' bank, and without a teacher of the plan's it is the untuned CLIP.
    """

    def __init__(self, retriever: DualPromptRetriever, batches: PairBatches, pictures: Pictures) -> None:
        plan, losses = batches.plan, batches.plan.losses
        self.retriever, self.batches, self.needs, self.teacher = retriever, batches, losses.needs, None
        if plan.teacher and "teacher" in self.needs:
            self.teacher = Teacher.of(untuned(plan.teacher), pictures.train)
        self.base = retriever.model.base
        self.null = null_image(self.base.config.vision_config.image_size)
        self.means, self.centre, self.against = dict[str, Tensor](), torch.empty(0), list[str]()
        if self.needs & {"prototypes", "aids", "against"}:
            images = batches.data.images
            features, shown = pictures.frozen(images), [batches.known(image)[0] for image in images]
            for name in sorted({name for names in shown for name in names}):
                self.means[claim(name)] = features[[k for k, names in enumerate(shown) if name in names]].mean(0)
            self.centre = features.mean(0)
        width = int(self.base.config.projection_dim)
        self.aids = nn.ModuleDict({name: AIDS[name](width, self.means) for name in losses.active if name in AIDS})
        retriever.model.aids = self.aids
        if "against" in self.needs:
            names = {*pictures.bank.meta_of, *WordBank.general().meta_of} - {*plan.withheld}
            texts = sorted({claim(name) for name in names} - self.means.keys())
            far, said = (retriever.frozen_features(texts=each)[1] for each in (texts, [*self.means]))
            self.against = mine(said, texts, far, FAR)

    @property
    def texts(self) -> list[str]:
        """Texts that a batch is to read beside its own."""
        return [*(NULL if "null_text" in self.needs else ()), *self.against]

    def pictures(self, pixels: Tensor | None) -> dict[str, Tensor]:
        """Return what is to be looked at, by field: a process's share [n, 3, side, side], its masked twin, the NULL."""
        if pixels is None:
            return {}
        found = {"image": pixels}
        if "kept_image" in self.needs:
            with self.retriever.model.frozen():
                found["kept_image"] = masked(pixels, salient(self.base, pixels), KEPT)
        return found | ({"null_image": self.null.to(pixels)} if "null_image" in self.needs else {})

    def given(self, batch: Pairs, said: Tensor, read: Tensor, frozen: Any) -> dict[str, Any]:
        """Return fields of `LossInputs`, those that are seen left out.

        `said` and `read` are features of the batch's claims and of `texts`, a row each, `frozen` [n, d] those of its
        pictures by the untuned CLIP.
        """
        needs, made = self.needs, dict[str, Any]({"names": batch.claims, "said": said, "aids": self.aids})
        if "null_text" in needs:
            made["null_text"] = read[: len(NULL)]
            if batch.pixels is None:
                made["null_image"] = self.retriever.frozen_features(self.null)[0].to(read)
        if "prototypes" in needs:
            made |= {"prototypes": self._shown(batch.keys, frozen), "centre": self.centre.to(frozen)}
        if "teacher" in needs:
            plain = self.base.logit_scale.detach().exp() * frozen @ self._frozen(batch.captions, read).T
            made["teacher"] = self.teacher.logits(batch.keys, batch.captions).to(read) if self.teacher else plain
        if self.against:
            made |= {"against": read[-len(self.against) :], "frozen_against": self._frozen(self.against, read)}
            made["frozen_said"] = self._frozen(batch.claims, read) if batch.claims else said
        return made

    def _frozen(self, texts: Sequence[str], like: Tensor) -> Tensor:
        found: Tensor = self.retriever.frozen_features(texts=texts)[1]
        return found.to(like.device)

    def _shown(self, keys: Sequence[str], frozen: Tensor) -> Tensor:
        """Return the mean of the means of what each picture shows, or its own feature where that is not known."""
        rows = []
        for key, own in zip(keys, frozen, strict=True):
            means = [self.means[claim(name)] for name in sorted(self.batches.known(key)[0])]
            rows.append(torch.stack(means).mean(0).to(own) if means else own)
        return torch.stack(rows)
