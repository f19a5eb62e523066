"""Retrieval among hard negatives: a trained retriever beside what it must beat, on pictures that none has seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from lvlm_guard.adapters.evaluation import metrics
from lvlm_guard.adapters.evaluation.gallery import Judged, Searched
from lvlm_guard.adapters.evaluation.metrics import Picked
from lvlm_guard.adapters.retrieval.claims import Claims
from lvlm_guard.matching.platt import fit_tau

TASK = "retrieval"
REAL = "retrieval_real"  # on grounds cut from photographs
PROBE = "linear-probe"
HEADLINES = ("verifier_auroc", "brier", "i2t_r1", "t2i_r1", "swap_auroc", "claims_auroc")
DRAWS = 300
Novel = NDArray[np.bool_]
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Of the squared weights of a linear probe, per picture."""

Probe = Callable[[Searched], Searched]


def figures(found: Searched, kinds: Sequence[str], novel: Novel | None = None) -> Callable[[Picked], dict[str, float]]:
    """Return a function of drawn pictures -> their figures by name.

    `i2t_r1` .. `t2i_r10`: recall; pictures search among all captions and swaps, captions among all pictures.
    `swap_auroc`: captions against their own swaps, pooled and of each kind. `accuracy_KIND`: share of captions that
    score above all their swaps of a kind. `claims_auroc`: "a photo of a dog" of pictures whose captions name one,
    against all others. Where it is said about which claims none was trained, `novel` [claims]: `verifier_auroc` and
    `brier` of the verifier, and `claims_auroc` of objects that were trained on and of others. A linear probe says
    nothing of captions and of others.
    """
    claims, verified, swaps = {"claims_auroc": found.claims_auroc()}, dict[str, Judged](), dict[str, Judged]()
    if novel is not None:
        verified["verifier_auroc"], verified["brier"] = found.verified()
        verified["claims_auroc_base"] = found.claims_auroc(~novel)
    if found.probed:
        return lambda pictures: _asked(verified | claims, pictures)
    if novel is not None:
        verified["claims_auroc_novel"] = found.claims_auroc(novel)
    if kinds:
        swaps["swap_auroc"] = found.swap_auroc()
    for kind in kinds:
        swaps[f"swap_auroc_{kind}"], swaps[f"accuracy_{kind}"] = found.swap_auroc(kind), found.above(kind)

    def drawn(pictures: Picked) -> dict[str, float]:
        rows = found.gallery.rows_of(pictures)
        recall = metrics.both_ways(found.image_places[pictures], found.text_places[rows])
        return _asked(verified, pictures) | recall | _asked(claims, pictures) | _asked(swaps, rows)

    return drawn


def _asked(judges: Mapping[str, Judged], places: Picked) -> dict[str, float]:
    return {name: judged(places) for name, judged in judges.items()}


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
        claimed = np.stack([said.get(name, mean) for name in found.gallery.claims.names], 1)
        return replace(found, claimed=claimed, probed=True)

    return probed


def _with_bias(features: Tensor) -> Tensor:
    return torch.cat([features.float(), torch.ones(len(features), 1)], 1)


def best_probe(features: Tensor, claims: Claims, validation: Searched) -> Probe:
    """Return the linear probe whose claims are told apart best on validation, by its temperature there."""
    probes = [linear_probe(features, claims, penalty) for penalty in PENALTIES]
    everything = np.arange(len(validation.gallery.images))
    best = max(probes, key=lambda probe: probe(validation).claims_auroc()(everything))
    asked = best(validation).asked
    tau = fit_tau(asked.cosines, asked.true)
    return lambda found: replace(best(found), tau=tau)


def rows_of(
    model: str,
    ours: str,
    found: Mapping[str, Sequence[Searched]],
    *,
    novel: Novel | None = None,
    task: str = TASK,
    baseline: str | None = None,
    draws: int = DRAWS,
) -> list[dict[str, Any]]:
    """Return rows in long form, see `metrics.table` and `figures`."""
    gallery = found[ours][0].gallery
    kinds, n = sorted(set(gallery.kinds.tolist())), len(gallery.images)
    judged = {id(one): figures(one, kinds, novel) for each in found.values() for one in each}

    def measure(one: Searched, pictures: Picked) -> dict[str, float]:
        return judged[id(one)](pictures)

    return metrics.table(model, ours, task, found, measure, n, headlines=HEADLINES, draws=draws, baseline=baseline)


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
