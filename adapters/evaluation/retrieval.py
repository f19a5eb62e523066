"""Retrieval among hard negatives: a trained retriever beside what it must beat, on pictures that none has seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from lvlm_guard.adapters.evaluation import metrics
from lvlm_guard.adapters.evaluation.gallery import Searched
from lvlm_guard.adapters.evaluation.metrics import AT, Picked
from lvlm_guard.adapters.retrieval.claims import Claims, fit_tau

TASK = "retrieval"
REAL = "retrieval_real"  # on grounds cut from photographs
PROBE = "linear-probe"
HEADLINES = ("verifier_auroc", "brier", "i2t_r1", "t2i_r1", "swap_auroc", "claims_auroc")
OF_CLAIMS = ("verifier_auroc", "brier", "claims_auroc", "claims_auroc_base")
"""What a linear probe has figures of."""

DRAWS = 300
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Of the squared weights of a linear probe, per picture."""

Measure = metrics.Measure[Searched]
Probe = Callable[[Searched], Searched]


def of_claims(novel: NDArray[np.bool_]) -> dict[str, Measure]:
    """Return the figures of claims by name: the verifier's AUROC and Brier score, of objects trained on and of others.

    About the `novel` [claims] none was trained.
    """
    return {
        "verifier_auroc": lambda found, pictures: found.verified(pictures)[0],
        "brier": lambda found, pictures: found.verified(pictures)[1],
        "claims_auroc_base": lambda found, pictures: found.claims_auroc(pictures, ~novel),
        "claims_auroc_novel": lambda found, pictures: found.claims_auroc(pictures, novel),
    }


def measures(kinds: Sequence[str]) -> dict[str, Measure]:
    """Return the figures by name.

    `i2t_r1` .. `t2i_r10`: recall; pictures search among all captions and swaps, captions among all pictures.
    `swap_auroc`: captions against their own swaps, pooled and of each kind. `accuracy_KIND`: share of captions that
    score above all their swaps of a kind. `claims_auroc`: "a photo of a dog" of pictures whose captions name one,
    against all others.
    """

    def i2t(found: Searched, pictures: Picked, k: int) -> float:
        return float((found.image_places[pictures] <= k).mean())

    def t2i(found: Searched, pictures: Picked, k: int) -> float:
        return float((found.text_places[found.gallery.rows_of(pictures)] <= k).mean())

    def swapped(found: Searched, pictures: Picked, kind: str = "") -> float:
        return found.swap_auroc(found.gallery.rows_of(pictures), kind)

    def above(found: Searched, pictures: Picked, kind: str) -> float:
        return found.above(found.gallery.rows_of(pictures), kind)

    named: dict[str, Measure] = {f"{way.__name__}_r{k}": partial(way, k=k) for way in (i2t, t2i) for k in AT}
    named["claims_auroc"] = Searched.claims_auroc
    if kinds:
        named["swap_auroc"] = swapped
    for kind in kinds:
        named |= {f"swap_auroc_{kind}": partial(swapped, kind=kind), f"accuracy_{kind}": partial(above, kind=kind)}
    return named


def linear_probe(features: Tensor, claims: Claims, penalty: float) -> Probe:
    """Return what asks a logistic regression per object about claims, instead of the text.

    It knows the objects that it learnt alone: of others it says the mean of what it says of those. What is learnt are
    claims from features [pictures, d] of the untuned CLIP; what is unknown of a picture is not.
    """
    known = torch.from_numpy(claims.true | claims.false)
    true = torch.from_numpy(claims.true).float()
    weights = torch.zeros(features.shape[1] + 1, len(claims.names), requires_grad=True)
    inputs = _with_bias(features)
    solver = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        wrong = binary_cross_entropy_with_logits(inputs @ weights, true, known.float(), reduction="sum")
        total: Tensor = wrong / len(features) + penalty * weights[:-1].square().sum()
        total.backward()
        return total

    solver.step(loss)

    def probed(found: Searched) -> Searched:
        logits = (_with_bias(found.image) @ weights.detach()).numpy()
        said, mean = dict(zip(claims.names, logits.T, strict=True)), logits.mean(1)
        return replace(found, claimed=np.stack([said.get(name, mean) for name in found.gallery.claims.names], 1))

    return probed


def _with_bias(features: Tensor) -> Tensor:
    return torch.cat([features.float(), torch.ones(len(features), 1)], 1)


def best_probe(features: Tensor, claims: Claims, validation: Searched) -> Probe:
    """Return the linear probe whose claims are told apart best on validation, by its temperature there."""
    probes = [linear_probe(features, claims, penalty) for penalty in PENALTIES]
    everything = np.arange(len(validation.gallery.images))
    best = max(probes, key=lambda probe: probe(validation).claims_auroc(everything))
    asked = best(validation).asked
    tau = fit_tau(asked.cosines, asked.true)
    return lambda found: replace(best(found), tau=tau)


def rows_of(
    model: str,
    ours: str,
    found: Mapping[str, Sequence[Searched]],
    *,
    more: Mapping[str, Measure] | None = None,
    task: str = TASK,
    baseline: str | None = None,
    draws: int = DRAWS,
) -> list[dict[str, Any]]:
    """Return rows in long form, see `metrics.table`; `more` are further figures, shown first.

    A linear probe says nothing of captions, so that only the figures of claims are told of it.
    """
    gallery = found[ours][0].gallery
    figures = {**(more or {}), **measures(sorted(set(gallery.kinds.tolist())))}
    silent = {PROBE: set(figures) - set(OF_CLAIMS)}
    how = {"headlines": HEADLINES, "draws": draws, "baseline": baseline, "silent": silent}
    return metrics.table(model, ours, task, found, figures, len(gallery.images), **how)  # type: ignore[arg-type]


def by_category(found: Sequence[Searched]) -> dict[str, dict[str, float]]:
    """Return category -> recall at 1 of its captions' pictures, its captions, and how many there are."""
    gallery = found[0].gallery
    told: dict[str, dict[str, float]] = {}
    for name in sorted({row.category for row in gallery.rows if row.category}):
        rows = np.array([k for k, row in enumerate(gallery.rows) if row.category == name])
        images = np.unique(gallery.image_of[rows])
        told[name] = {
            "i2t_r1": float(np.mean([(one.image_places[images] <= 1).mean() for one in found])),
            "t2i_r1": float(np.mean([(one.text_places[rows] <= 1).mean() for one in found])),
            "n": float(len(rows)),
        }
    return told
