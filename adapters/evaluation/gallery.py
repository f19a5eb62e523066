"""Pictures, their captions and the captions' swaps: what retrieval is measured on, and what a model makes of it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor

from lvlm_guard.adapters.data import CaptionData, CaptionRow
from lvlm_guard.adapters.data.dataset import squeezed
from lvlm_guard.adapters.data.pictures import AT_ONCE, Features
from lvlm_guard.adapters.evaluation.metrics import auroc, both_ways, judge, ranks
from lvlm_guard.adapters.retrieval.bank import WordBank
from lvlm_guard.adapters.retrieval.claims import Claims, Known, known_of
from lvlm_guard.adapters.retrieval.retriever import DualPromptRetriever
from lvlm_guard.adapters.retrieval.swaps import hard_negatives
from lvlm_guard.adapters.terms import TAU
from lvlm_guard.verify.check import SWAPS, drawn

NEGATIVES = 4
"""Swaps of a caption, as in DCAR's data."""

Places = NDArray[np.int64]
Judged = Callable[[Places], float]
"""Pictures or captions that are drawn, repeated or not -> a figure of them, NaN where there is none."""


def swapped(row: CaptionRow, bank: WordBank, data: CaptionData, known: Known, seed: int = 0) -> list[tuple[str, str]]:
    """Return (caption, what was exchanged) of a row's swaps: its own, or such as the bank makes.

    No swap says what another caption or a fact of the picture says. Where facts tell of its objects, one is exchanged
    for what is known to be absent alone; where captions are all there is, for what none of them names, as DCAR does.
    """
    if row.negatives:
        return list(zip(row.negatives, row.kinds or ("swap",) * len(row.negatives), strict=True))
    there, absent = known
    labels = [name for name in (row.category, *row.attributes.values(), *sorted(there)) if name]
    possible: list[str] = []
    facts = data.facts.get(row.image)
    if facts is not None:
        labels += [f"{value} {name}" for name, values in facts.attributes.items() for value in values]
        if facts.objects or data.exhaustive:
            possible = [name for name in bank.meta_of if name not in absent]
    true = data.captions_of[row.image]
    made = hard_negatives(row.caption, bank, NEGATIVES, labels=labels, true_captions=true, possible=possible, seed=seed)
    return [(swap.text, swap.kind) for swap in made]


@dataclass(frozen=True)
class Gallery:
    """What is searched: pictures that can be read, their captions, the captions' swaps, and claims of objects.

    Args:
        image_of: [rows], the place of each caption's picture in `images`.
        swaps: captions that are not true of the picture of the caption that they were made of.
        swap_of: [swaps], that caption's row.
        kinds: [swaps], what was exchanged.
    """

    images: tuple[str, ...]
    rows: tuple[CaptionRow, ...]
    image_of: Places
    swaps: tuple[str, ...]
    swap_of: Places
    kinds: NDArray[np.str_]
    claims: Claims

    @classmethod
    def of(
        cls, data: CaptionData, bank: WordBank, pictures: int | None = None, withheld: Collection[str] = ()
    ) -> Gallery:
        """Return the gallery of a data set, or of its first pictures; no claims about what is withheld."""
        images = tuple(data.images[:pictures])
        place = {image: number for number, image in enumerate(images)}
        rows = tuple(row for row in data.rows if row.image in place)
        known = known_of(data, bank)
        made = [(k, *swap) for k, row in enumerate(rows) for swap in swapped(row, bank, data, known(row.image))]
        return cls(
            images,
            rows,
            np.array([place[row.image] for row in rows]),
            tuple(text for _, text, _ in made),
            np.array([k for k, _, _ in made], dtype=np.int64),
            np.array([kind for _, _, kind in made], dtype=np.str_),
            Claims.of([*map(known, images)], without=withheld),
        )

    @cached_property
    def truth(self) -> NDArray[np.bool_]:
        """[images, rows + swaps]: which caption is true of which picture; equal captions are true of both."""
        texts = np.array([squeezed(row.caption) for row in self.rows])
        relevant = np.zeros((len(self.images), len(self.rows) + len(self.swaps)), bool)
        for number, image in enumerate(self.image_of):
            relevant[image, : len(self.rows)] |= texts == texts[number]
        return relevant

    @cached_property
    def _rows(self) -> list[Places]:
        return [np.flatnonzero(self.image_of == k) for k in range(len(self.images))]

    def rows_of(self, pictures: Places) -> Places:
        """Return the places of the captions of pictures, repeated or not."""
        return np.concatenate([self._rows[k] for k in pictures])

    @torch.no_grad()
    def searched(self, retriever: DualPromptRetriever, pixels: Features) -> Searched:
        """Return what a retriever makes of it, without word weights."""
        parts = [self.images[at : at + AT_ONCE] for at in range(0, len(self.images), AT_ONCE)]
        seen = [retriever.model.images(pixels(each)) for each in parts]
        text = retriever.text_features([*(row.caption for row in self.rows), *self.swaps])
        asked = self.claims.texts
        said = retriever.text_features(asked) if asked else text[:0]
        claimed = [
            retriever.cosines(image, asked, said, partial(pixels, each))
            for each, image in zip(parts, seen, strict=True)
        ]
        tau = retriever.card.temperature or retriever.model.tau
        return Searched(self, torch.cat(seen), text, torch.cat(claimed).numpy(), tau)


class Asked(NamedTuple):
    """Claims as the verifier asks them: cosines [n, 1 + swaps] of each and its swaps, which hold, of which picture."""

    cosines: NDArray[np.float64]
    true: NDArray[np.bool_]
    pictures: Places


@dataclass(frozen=True)
class Searched:
    """Features of a gallery, and the figures they give of pictures or captions, which are named by their places.

    What a figure needs is made once, for the bootstrap asks it hundreds of times.

    Args:
        image, text: [images, d] and [rows + swaps, d].
        claimed: [images, claims] cosines.
        tau: the verifier's temperature.
        probed: whether claims alone were asked, by a linear probe.
    """

    gallery: Gallery
    image: Tensor
    text: Tensor
    claimed: NDArray[np.float32]
    tau: float = TAU
    probed: bool = False

    @cached_property
    def scores(self) -> NDArray[np.float32]:
        """[images, rows + swaps] cosines."""
        found: NDArray[np.float32] = (self.image @ self.text.T).numpy()
        return found

    @cached_property
    def true(self) -> NDArray[np.float64]:
        """[rows]: the score of each caption with its picture."""
        return self.scores[self.gallery.image_of, np.arange(len(self.gallery.rows))].astype(np.float64)

    @cached_property
    def swapped(self) -> NDArray[np.float64]:
        """[swaps]: the score of each swap with that picture."""
        of = self.gallery.image_of[self.gallery.swap_of]
        return self.scores[of, len(self.gallery.rows) + np.arange(len(of))].astype(np.float64)

    @cached_property
    def image_places(self) -> Places:
        """[images]: at which place each picture finds a true caption, among all captions and swaps."""
        return ranks(self.scores, self.gallery.truth)

    @cached_property
    def text_places(self) -> Places:
        """[rows]: at which place each caption finds its picture, among all pictures."""
        rows = len(self.gallery.rows)
        return ranks(self.scores[:, :rows].T, self.gallery.truth[:, :rows].T)

    def figures(self) -> dict[str, float]:
        """Return recall both ways, the verifier's AUROC and that of claims; see `metrics.Figures`."""
        found = both_ways(self.image_places, self.text_places)
        everything = np.arange(len(self.gallery.images))
        return found | {"auroc": auroc(self.true, self.swapped), "claims": self.claims_auroc()(everything)}

    def claims_auroc(self, about: NDArray[np.bool_] | None = None) -> Judged:
        """Return drawn pictures -> AUROC of claims, or of some `about` [claims], that hold of them against others."""
        claims = self.gallery.claims
        asked = (claims.true | claims.false) & (True if about is None else about)
        return judge(self.claimed[asked], claims.true[asked], np.nonzero(asked)[0])

    @cached_property
    def asked(self) -> Asked:
        """Claims of which is known whether they hold, against the swaps that the verifier draws.

        As there, a swap is drawn by its name, here among the objects that the picture is known not to show.
        """
        claims, cosines, found = self.gallery.claims, [], []
        at = {name: k for k, name in enumerate(claims.names)}
        for picture, (scores, true, false) in enumerate(zip(self.claimed, claims.true, claims.false, strict=True)):
            absent = [name for name in claims.names if false[at[name]]]
            for name in claims.names:
                swaps = drawn(name, [other for other in absent if other != name], SWAPS)
                if len(swaps) == SWAPS and (true[at[name]] or false[at[name]]):
                    cosines.append(scores[[at[name], *map(at.__getitem__, swaps)]].astype(np.float64))
                    found.append((picture, true[at[name]]))
        of, holds = np.array(found, dtype=np.int64).reshape(len(found), 2).T
        return Asked(np.array(cosines).reshape(len(found), 1 + SWAPS), holds > 0, of)

    def verified(self) -> tuple[Judged, Judged]:
        """Return drawn pictures -> AUROC, and -> Brier score, of the verifier's probabilities on claims of them."""
        cosines, true, of = self.asked
        p = softmax(cosines / self.tau, axis=1)[:, 0]

        def brier(pictures: Places) -> float:
            times = np.bincount(pictures, minlength=len(self.gallery.images))[of]
            return float(np.average((p - true) ** 2, weights=times)) if times.any() else float("nan")

        return judge(p, true, of), brier

    def swap_auroc(self, kind: str = "") -> Judged:
        """Return drawn captions -> AUROC of them against their swaps of a kind, "" for all."""
        fits = self._of_kind(kind)
        of = self.gallery.swap_of[fits]
        own = np.unique(of)
        scores = np.concatenate([self.true[own], self.swapped[fits]])
        return judge(scores, np.arange(len(scores)) < len(own), np.concatenate([own, of]))

    def above(self, kind: str) -> Judged:
        """Return drawn captions -> share of them that score above all their swaps of a kind."""
        best = np.full(len(self.gallery.rows), -np.inf)
        fits = self._of_kind(kind)
        np.maximum.at(best, self.gallery.swap_of[fits], self.swapped[fits])
        won = np.where(np.isfinite(best), (self.true > best).astype(np.float64), np.nan)
        return lambda rows: float("nan") if np.isnan(won[rows]).all() else float(np.nanmean(won[rows]))

    def _of_kind(self, kind: str) -> NDArray[np.bool_]:
        return np.ones(len(self.swapped), bool) if not kind else np.asarray(self.gallery.kinds == kind)
