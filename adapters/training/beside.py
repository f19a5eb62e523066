"""What terms of a loss need beside the features of a batch's pairs: further texts and pictures, teachers, aids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from lvlm_guard.adapters.backbone import masked, salient
from lvlm_guard.adapters.classes import AIDS
from lvlm_guard.adapters.data import CaptionData
from lvlm_guard.adapters.data.pictures import Features
from lvlm_guard.adapters.retrieval.bank import WordBank
from lvlm_guard.adapters.retrieval.claims import claim
from lvlm_guard.adapters.retrieval.retriever import DualPromptRetriever
from lvlm_guard.adapters.testtime import mine

if TYPE_CHECKING:
    from lvlm_guard.adapters.training.retrieval import PairBatches, Pairs

KEPT = 0.75
"""Share of the patches that stay, DiSa's [R]."""

FAR = 64
"""Names that pictures are set against."""

# fmt: off
NULL = ("in my opinion", "on the other hand", "thank you very much", "that is not always so", "of course",
        "nobody knows why", "it depends", "this is what was said before", "see you then", "to be honest", "in the end",
        "what does it mean", "as far as we can tell", "better late than never", "by and large",
        "for example")
# fmt: on
"""Texts that evoke no picture."""


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

    Args:
        retriever: that is trained; modules that learn beside its prompts become its model's `aids`.
        batches: of the training.
        needs: fields of `LossInputs`.
        terms: that count.
        bank: where names far from all claims are looked for.
        frozen: features of the untuned CLIP for the training pictures.
        teacher: None for the untuned CLIP.
    """

    def __init__(
        self,
        retriever: DualPromptRetriever,
        batches: PairBatches,
        needs: frozenset[str],
        terms: Sequence[str],
        bank: WordBank,
        frozen: Features | None,
        teacher: Teacher | None = None,
    ) -> None:
        self.retriever, self.batches, self.needs, self.teacher = retriever, batches, needs, teacher
        self.base = retriever.model.base
        self.null = null_image(self.base.config.vision_config.image_size)
        self.means, self.centre, self.against = dict[str, Tensor](), torch.empty(0), list[str]()
        if needs & {"prototypes", "aids", "against"}:
            assert frozen is not None  # asked for by `LossStack.needs_frozen`
            self._look(batches.data.images, frozen)
        width = int(self.base.config.projection_dim)
        self.aids = nn.ModuleDict({name: AIDS[name](width, self.means) for name in terms if name in AIDS})
        retriever.model.aids = self.aids
        if "against" in needs:
            self._mine(bank)

    def _look(self, images: Sequence[str], frozen: Features) -> None:
        features, shown = frozen(images), [self.batches.known(image)[0] for image in images]
        for name in sorted({name for names in shown for name in names}):
            self.means[claim(name)] = features[[k for k, names in enumerate(shown) if name in names]].mean(0)
        self.centre = features.mean(0)

    def _mine(self, bank: WordBank) -> None:
        names = {*bank.meta_of, *WordBank.general().meta_of} - {*self.batches.plan.withheld}
        texts = sorted({claim(name) for name in names} - self.means.keys())
        _, far = self.retriever.frozen_features(texts=texts)
        _, said = self.retriever.frozen_features(texts=[*self.means])
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

        Args:
            batch: of n pairs.
            said, read: features of the batch's claims and of `texts`, a row each.
            frozen: [n, d] features of the untuned CLIP for the batch's pictures; None of none.
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
        names = [sorted(self.batches.known(key)[0]) for key in keys]
        rows = [
            torch.stack([self.means[claim(name)] for name in each]).mean(0).to(own) if each else own
            for each, own in zip(names, frozen, strict=True)
        ]
        return torch.stack(rows)
