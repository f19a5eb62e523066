"""How well captions and pictures find each other. Ties count against the model; a share is 0 to 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lvlm_guard.adapters.ranker.metrics import auroc
from lvlm_guard.errors import KnobError

AT = (1, 5, 10)


@dataclass(frozen=True)
class RetrievalFigures:
    """Recall at 1, 5 and 10, both ways, and how well true captions stand above their swaps.

    Args:
        image_to_text: K -> share of images one of whose captions is among the first K.
        text_to_image: K -> share of captions whose image is among the first K.
        auroc: of the verifier, true captions against swaps; NaN where it was not measured.
        auroc_by_kind: the same for each kind of swap.
        claims: AUROC of claims that an object is in a picture, true ones against others; NaN where there are none.
    """

    image_to_text: Mapping[int, float]
    text_to_image: Mapping[int, float]
    auroc: float = float("nan")
    auroc_by_kind: Mapping[str, float] | None = None
    claims: float = float("nan")


def ranks(scores: ArrayLike, relevant: ArrayLike) -> NDArray[np.int64]:
    """Return at which place each query finds its first relevant candidate, 1 for the best.

    Args:
        scores: [queries, candidates], higher is better.
        relevant: [queries, candidates] bool; at least one in each row.

    Returns:
        [queries]: 1 + how many other candidates score at least as high.

    Raises:
        KnobError: the shapes differ, a query has no relevant candidate, or a score is NaN.
    """
    s, hit = np.asarray(scores, float), np.asarray(relevant, bool)
    if s.ndim != 2 or s.shape != hit.shape or not s.size:
        raise KnobError(f"Give scores and relevance of one shape [queries, candidates]; got {s.shape} and {hit.shape}.")
    if np.isnan(s).any():
        raise KnobError(f"{int(np.isnan(s).sum())} scores are NaN, so there is no order: the model is broken.")
    if not hit.any(1).all():
        raise KnobError(
            f"{int((~hit.any(1)).sum())} queries have no relevant candidate, so they are never found: leave them out."
        )
    best = np.where(hit, s, -np.inf).max(1)
    return np.asarray(1 + ((s >= best[:, None]) & ~hit).sum(1), np.int64)


def recall(scores: ArrayLike, relevant: ArrayLike, at: Sequence[int] = AT) -> dict[int, float]:
    """Return K -> share of queries with a relevant candidate among the first K; arguments as of `ranks`."""
    places = ranks(scores, relevant)
    return {k: float((places <= k).mean()) for k in at}


def retrieval_figures(
    image_to_text: ArrayLike, text_to_image: ArrayLike | None, image_of: Sequence[int], at: Sequence[int] = AT
) -> RetrievalFigures:
    """Return recall both ways.

    Args:
        image_to_text: [images, captions], scores by which each image ranks the captions.
        text_to_image: [captions, images], scores by which each caption ranks the images; None for the transpose.
        image_of: [captions], the row of each caption's image; -1 for a swap, which is in the gallery of captions but
            asks for no image.
        at: the Ks.

    Raises:
        KnobError: an image has no caption, or as in `ranks`.
    """
    rows = np.asarray(image_to_text, float)
    columns = rows.T if text_to_image is None else np.asarray(text_to_image, float)
    of = np.asarray(image_of)
    if of.shape != (rows.shape[1],) or (of.size and (of.max() >= len(rows) or of.min() < -1)):
        raise KnobError(
            f"image_of must say for each of the {rows.shape[1]} captions which of the {len(rows)} images it is of, or "
            "-1 for none."
        )
    relevant = of[None] == np.arange(len(rows))[:, None]
    true = of >= 0
    return RetrievalFigures(recall(rows, relevant, at), recall(columns[true], relevant.T[true], at))


def swap_auroc(
    true: ArrayLike, swaps: Sequence[Sequence[float]], kinds: Sequence[Sequence[str]] | None = None
) -> tuple[float, dict[str, float]]:
    """Return (AUROC of true captions against all swaps, the same for each kind of swap); NaN where there is none.

    Args:
        true: [n], score of image i with its caption.
        swaps: for each image the scores of its caption's swaps.
        kinds: what was exchanged in each of them.
    """
    pooled = [score for each in swaps for score in each]
    by_kind: dict[str, list[float]] = {}
    for scores, names in zip(swaps, kinds or [], strict=kinds is not None):
        for score, name in zip(scores, names, strict=True):
            by_kind.setdefault(name, []).append(score)
    return auroc(true, pooled), {name: auroc(true, found) for name, found in sorted(by_kind.items())}
