"""What a retriever learns by, DCAR's losses or others, which of its weights are kept, and how it is calibrated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call

from lvlm_guard.adapters.data.pictures import Features
from lvlm_guard.adapters.errors import TrainingError
from lvlm_guard.adapters.evaluation.gallery import Gallery
from lvlm_guard.adapters.evaluation.metrics import UNTUNED, Candidate, selected
from lvlm_guard.adapters.losses import LossInputs
from lvlm_guard.adapters.prompts.heads import parted, single
from lvlm_guard.adapters.prompts.producers import Gated
from lvlm_guard.adapters.retrieval.claims import Claims
from lvlm_guard.adapters.retrieval.retriever import DualPromptRetriever
from lvlm_guard.adapters.terms import regulated, unchanged
from lvlm_guard.adapters.training.pairs import Beside, PairBatches, Pairs, gathered, share_of
from lvlm_guard.adapters.training.recipe import CANDIDATES, Recipe
from lvlm_guard.adapters.training.trainer import Figures, Measured, learning, put
from lvlm_guard.errors import KnobError
from lvlm_guard.matching.platt import fit_tau, platt

if TYPE_CHECKING:
    from lvlm_guard.adapters.training.dual_prompt import Pictures, Plan

UNDECIDED = 2000  # pictures by which is found where the untuned CLIP is undecided


class RetrievalTask:
    """Trains a retriever's prompts; frozen features stand for pixels where no prompt changes the pictures' side."""

    averages = True

    def __init__(self, retriever: DualPromptRetriever, pictures: Pictures, plan: Plan, recipe: Recipe) -> None:
        self.retriever, self.model = retriever, retriever.model
        self.gallery, self.pixels, self.frozen = pictures.gallery, pictures.pixels, pictures.frozen
        self.losses = replace(plan.losses, tau=plan.tau or retriever.model.tau)
        config = retriever.config
        still = config is not None and config.sides == "text" and not config.headed
        self.experts = config.ensemble if config is not None else 1
        self.width = int(self.model.base.config.projection_dim)
        source = None if still else pictures.pixels
        self.batches = PairBatches(pictures.train, source, plan, recipe, pictures.bank)
        self.undecided = self._undecided(pictures.train.images) * self.model.gain if self.batches.judging else 0.0
        self.beside = Beside(retriever, self.batches, pictures)
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
        one = partial(single, experts=self.experts, d=self.width)
        weighed = bool(batch.swaps) and self.retriever.card.strength > 0
        owner = [k for k, own in enumerate(batch.swaps) for _ in own]
        swaps = [text for own in batch.swaps for text in own]
        parts = {
            "captions": batch.captions,
            "own": batch.captions if weighed else [],
            "swaps": swaps,
            "claims": [self.retriever.said(one)[0] for one in batch.claims],
            # weights of one picture must not tell another picture anything
            "crossed": swaps if weighed and self.losses.negclip else [],
            "beside": self.beside.texts,
        }
        texts = [text for part in parts.values() for text in part]
        inputs = self.retriever.text_inputs(texts)
        frozen = self.frozen(batch.keys).to(device)
        factors = None
        if weighed:
            until = 2 * n + len(swaps)
            factors = torch.ones(inputs.input_ids.shape)
            factors[n:until] = self.retriever.factors(frozen[[*range(n), *owner]].cpu(), inputs[list(range(n, until))])
        mine = share_of(len(texts), batch.share, batch.of)
        pictures = self.beside.pictures(None if batch.pixels is None else batch.pixels.to(device))
        seen = model(
            pixel_values=torch.cat([*pictures.values()]) if pictures else None,
            input_ids=inputs.input_ids[mine],
            attention_mask=inputs.attention_mask[mine],
            factors=None if factors is None else factors[mine].to(device),
        )
        shown = () if seen.image is None else seen.image.split([len(part) for part in pictures.values()])
        looked = {
            name: gathered(part, 1 if name == "null_image" else n) for name, part in zip(pictures, shown, strict=True)
        }
        image = looked.get("image", frozen)
        told = gathered(seen.text, len(texts)).split([len(part) for part in parts.values()])
        read = dict(zip(parts, told, strict=True))
        text, swap = read["captions"], read["swaps"]
        with unchanged(image):  # a cosine in bfloat16 is off by a nat at CLIP's temperature
            given: dict[str, Any] = {name: one(part) for name, part in looked.items()} | {
                "scores": image @ text.T,
                "categories": batch.categories.to(device),
                "same": batch.true.to(device),
                "image": one(image),
                "text": one(text),
                "experts": parted(text, self.experts, self.width),
            }
            if weighed:
                given["positive"] = (image * read["own"]).sum(-1)
            if batch.swaps:
                most = max(map(len, batch.swaps))
                present = torch.tensor([[k < len(own) for k in range(most)] for own in batch.swaps], device=device)
                each = torch.zeros(n, most, device=device, dtype=image.dtype)
                given["present"] = present
                given["negatives"] = each.masked_scatter(present, (image[owner] * swap).sum(-1))
            if self.losses.negclip:
                against = image @ (read["crossed"] if weighed else swap).T
                given["swaps"] = against.masked_fill(batch.crossed.to(device), -torch.inf)
            if self.batches.judging:
                given["claims"] = self.retriever.cosines(image, batch.claims, read["claims"]) - self.undecided
                given["claimed"], given["refuted"] = batch.claimed.to(device), batch.refuted.to(device)
            if self.losses.needs_frozen:
                given["frozen_image"] = frozen
                given["frozen_text"] = self.retriever.frozen_features(texts=batch.captions)[1].to(device)
            given |= self.beside.given(batch, one(read["claims"]), one(read["beside"]), frozen)
            value = self.losses(LossInputs(**given), [*learning(self.model).values()])
        return value.total, value.terms

    def measure(self) -> Figures:
        """Return recall both ways on the validation's gallery with its swaps, the verifier's AUROC, and their score."""
        return scored(
            self.gallery.searched(self.retriever, self.pixels).figures(), claims="claims" in self.losses.active
        )

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


def chosen(
    task: RetrievalTask, folder: Path, measured: Sequence[Measured], recipe: Recipe, plain: Figures, stage: bool
) -> Candidate:
    """Give the retriever the weights that are best on validation, told by their step, of a stage the average.

    That average of all that were measured, candidates in the folder, counts as one more after the recipe's last step;
    `plain` are figures of the untuned CLIP, which may be best. From a stage another training begins.
    """

    claims = "claims" in task.losses.active

    def weights(step: int) -> dict[str, Tensor]:
        return load_file(folder / CANDIDATES / f"{step}.safetensors")

    candidates = [Candidate(UNTUNED, plain, claims=claims)]
    candidates += [Candidate(one.step, one.figures, claims=claims) for one in measured]
    put(task.model, averaged([weights(one.step) for one in measured]))
    candidates.append(Candidate(recipe.steps + 1, task.measure(), averaged=True, claims=claims))
    best = candidates[-1] if stage else selected(candidates)
    if best.epoch != UNTUNED and not best.averaged:
        put(task.model, weights(best.epoch))
    return best


def averaged(weights: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the average of several epochs' weights by a Gaussian over them: PromptSRC (arXiv:2307.06948).

    Its mean lies at three quarters of the epochs, its deviation is 1 of 20.
    """
    n = len(weights)
    at = np.arange(1, n + 1)
    share = np.exp(-0.5 * ((at - 0.75 * n) / max(1.0, n / 20)) ** 2)
    share /= share.sum()
    return {
        name: torch.stack([float(w) * each[name].float() for w, each in zip(share, weights, strict=True)]).sum(0)
        for name in weights[0]
    }


def calibrate(retriever: DualPromptRetriever, gallery: Gallery, pixels: Features) -> None:
    """Put into a retriever's card what validation tells: P(claim holds) = sigmoid(a * S + b), and the verifier's tau.

    Claims are those of the gallery: "a photo of a dog". Where its captions name nothing that the bank knows, they are
    the captions and their swaps. True and false count alike, as BLIP's matching head and POPE ask.
    """
    found = gallery.searched(retriever, pixels)
    if gallery.claims.telling:
        scores, labels = gallery.claims.judged(found.claimed)
    else:
        scores = np.concatenate([found.true, found.swapped])
        labels = np.arange(len(scores)) < len(found.true)
    calibration = temperature = None
    with suppress(KnobError):  # nothing to fit to
        calibration = platt(scores, labels, balanced=True)
    with suppress(KnobError):
        temperature = fit_tau(found.asked.cosines, found.asked.true)
    retriever.card = replace(retriever.card, calibration=calibration, temperature=temperature)
