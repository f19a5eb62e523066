"""Intervals over pictures and trainings: both are drawn again, so that neither's luck is left out.

Retrieval among hard negatives: a trained retriever beside what it must beat, on pictures that none has seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from lvlm_guard.adapters.evaluation.gallery import Gallery, Searched
from lvlm_guard.adapters.evaluation.metrics import AT
from lvlm_guard.adapters.retrieval.claims import Claims, fit_tau

Picked = NDArray[np.int64]
Figure = Callable[[Picked, Picked], float]
"""(trainings drawn, pictures drawn) -> the figure of these."""


class Interval(NamedTuple):
    """A figure and its 95 % percentile interval."""

    value: float
    low: float
    high: float


def interval(figure: Figure, trainings: int, pictures: int, *, draws: int = 1000, seed: int = 0) -> Interval:
    """Return a figure with its interval; trainings and pictures are drawn with replacement, independently.

    A figure that is NaN on all of them has no interval.

    Args:
        figure: a mean over trainings; the same draws for the same seed, so that differences of two are paired.
        trainings, pictures: how many there are.
        draws: of the bootstrap.
        seed: of the draws.
    """
    return ends_of(np.array([figure(*drawn) for drawn in _drawn(trainings, pictures, draws, seed)]))


def _drawn(trainings: int, pictures: int, draws: int, seed: int = 0) -> Iterator[tuple[Picked, Picked]]:
    """Yield all trainings and pictures, then draws of them."""
    yield np.arange(trainings), np.arange(pictures)
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        yield rng.integers(0, trainings, trainings), rng.integers(0, pictures, pictures)


def ends_of(figures: NDArray[np.float64]) -> Interval:
    """Return a figure with its 95 % interval from its value on everything, then on draws."""
    whole = float(figures[0])
    if math.isnan(whole):
        return Interval(whole, whole, whole)
    low, high = np.nanquantile(figures[1:], (0.025, 0.975))
    return Interval(whole, float(low), float(high))


def less(one: Figure, other: Figure) -> Figure:
    """Return the difference of two figures, on the same trainings and pictures."""
    return lambda trainings, pictures: one(trainings, pictures) - other(trainings, pictures)


TASK = "retrieval"
REAL = "retrieval_real"  # on grounds cut from photographs
PROBE = "linear-probe"
HEADLINES = ("verifier_auroc", "brier", "i2t_r1", "t2i_r1", "swap_auroc", "claims_auroc")
"""What an adapter must win by."""

OF_CLAIMS = ("verifier_auroc", "brier", "claims_auroc", "claims_auroc_base")
"""What a linear probe has figures of."""

DRAWS = 300
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Of the squared weights of a linear probe, per picture."""

Found = Mapping[str, Sequence[Searched]]
"""Method -> what each of its trainings makes of the gallery."""

Measure = Callable[[Searched, NDArray[np.int64], NDArray[np.int64]], float]
"""(one training, pictures drawn, their captions) -> a figure."""


def of_claims(novel: NDArray[np.bool_]) -> dict[str, Measure]:
    """Return the figures of claims by name: the verifier's AUROC and Brier score, of objects trained on and of others.

    Args:
        novel: [claims]: about which objects no claim was trained.
    """

    def about(which: NDArray[np.bool_]) -> Measure:
        return lambda found, pictures, _: found.claims_auroc(pictures, which)

    return {
        "verifier_auroc": lambda found, pictures, _: found.verified(pictures)[0],
        "brier": lambda found, pictures, _: found.verified(pictures)[1],
        "claims_auroc_base": about(~novel),
        "claims_auroc_novel": about(novel),
    }


def linear_probe(features: Tensor, claims: Claims, penalty: float) -> Callable[[Searched], Searched]:
    """Return what asks a logistic regression per object about claims, instead of the text.

    It knows the objects that it learnt alone: of others it says the mean of what it says of those.

    Args:
        features: [pictures, d], of the untuned CLIP's images.
        claims: what is known of these pictures; what is unknown is not learnt from.
        penalty: of the squared weights.
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
        said = dict(zip(claims.names, logits.T, strict=True))
        mean = logits.mean(1)
        columns = [said.get(name, mean) for name in found.gallery.claims.names]
        return replace(found, claimed=np.stack(columns, 1))

    return probed


def _with_bias(features: Tensor) -> Tensor:
    return torch.cat([features.float(), torch.ones(len(features), 1)], 1)


def best_probe(features: Tensor, claims: Claims, validation: Searched) -> Callable[[Searched], Searched]:
    """Return the linear probe whose claims are told apart best on validation, by its temperature there."""
    probes = [linear_probe(features, claims, penalty) for penalty in PENALTIES]
    everything = np.arange(len(validation.gallery.images))
    best = max(probes, key=lambda probe: probe(validation).claims_auroc(everything))
    asked = best(validation).asked
    tau = fit_tau(asked.cosines, asked.true)
    return lambda found: replace(best(found), tau=tau)


def measures(kinds: Sequence[str]) -> dict[str, Measure]:
    """Return the figures by name.

    `i2t_r1` .. `t2i_r10`: recall; pictures search among all captions and swaps, captions among all pictures.
    `swap_auroc`: captions against their own swaps, pooled and of each kind. `accuracy_KIND`: share of captions that
    score above all their swaps of a kind. `claims_auroc`: "a photo of a dog" of pictures whose captions name one,
    against all others.
    """

    def image_recall(k: int) -> Measure:
        return lambda found, pictures, _: float((found.image_places[pictures] <= k).mean())

    def text_recall(k: int) -> Measure:
        return lambda found, _, rows: float((found.text_places[rows] <= k).mean())

    named: dict[str, Measure] = {f"i2t_r{k}": image_recall(k) for k in AT}
    named |= {f"t2i_r{k}": text_recall(k) for k in AT}
    named["claims_auroc"] = lambda found, pictures, _: found.claims_auroc(pictures)
    if not kinds:
        return named
    named["swap_auroc"] = lambda found, _, rows: found.swap_auroc(rows)
    for kind in kinds:
        named[f"swap_auroc_{kind}"] = lambda found, _, rows, kind=kind: found.swap_auroc(rows, kind)  # type: ignore[misc]
        named[f"accuracy_{kind}"] = lambda found, _, rows, kind=kind: found.above(rows, kind)  # type: ignore[misc]
    return named


def rows_of(
    model: str,
    ours: str,
    found: Found,
    *,
    more: Mapping[str, Measure] | None = None,
    task: str = TASK,
    baseline: str | None = None,
    draws: int = DRAWS,
) -> list[dict[str, Any]]:
    """Return rows in long form: each figure of each method, and `ours` less each other method.

    A linear probe says nothing of captions, so that only the figures of claims are told of it.

    Args:
        model: name of the CLIP.
        ours: the method that is compared with all others.
        found: of all methods, with as many trainings each; an untrained method's is repeated.
        more: further figures, shown first.
        task: that the rows are of.
        baseline: the method that all others are compared with too; None for none.
        draws: of the bootstrap over pictures and trainings.
    """
    gallery = found[ours][0].gallery
    captions = _captions(gallery)
    kinds = sorted(set(gallery.kinds.tolist()))
    pictures = len(gallery.images)
    rows: list[dict[str, Any]] = []
    trainings = len(found[ours])
    draws_of = [*_drawn(trainings, pictures, draws)]
    pairs = [(ours, other) for other in found if other != ours]
    pairs += [(one, baseline) for one in found if baseline and one not in (ours, baseline)]
    for metric, measure in {**(more or {}), **measures(kinds)}.items():
        # the same draws for all, so that a difference is that of figures which are there already
        figures = {
            method: np.array([_over(measure, captions, each, *drawn) for drawn in draws_of])
            for method, each in found.items()
            if method != PROBE or metric in OF_CLAIMS
        }
        for method, values in figures.items():
            rows.append(row(model, method, task, metric, ends_of(values), pictures))
        for one, other in pairs:
            if metric in HEADLINES and {one, other} <= figures.keys():
                values = figures[one] - figures[other]
                rows.append(row(model, f"{one}-{other}", task, metric, ends_of(values), pictures, baseline=other))
    return rows


def _over(
    measure: Measure,
    captions: Sequence[NDArray[np.int64]],
    each: Sequence[Searched],
    trainings: Picked,
    pictures: Picked,
) -> float:
    """Return the mean over trainings of a figure of pictures and their captions."""
    said = np.concatenate([captions[k] for k in pictures])
    return float(np.mean([measure(each[t], pictures, said) for t in trainings]))


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


def _captions(gallery: Gallery) -> list[NDArray[np.int64]]:
    return [np.flatnonzero(gallery.image_of == k) for k in range(len(gallery.images))]


def row(
    model: str,
    method: str,
    task: str,
    metric: str,
    ends: tuple[float, float, float],
    n: int,
    baseline: str | None = None,
) -> dict[str, Any]:
    """Return one row in long form; a figure that is undefined is null, one of a difference names what it is less."""
    value, low, high = (None if math.isnan(number) else round(number, 6) for number in ends)
    return {
        "model": model,
        "method": method,
        "task": task,
        "metric": metric,
        "value": value,
        "low": low,
        "high": high,
        "n": n,
    } | ({"baseline": baseline} if baseline else {})
