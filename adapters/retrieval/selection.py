"""Which epoch is kept: by retrieval and verification on validation, never by the training loss.

What a retriever is for must not get worse: a candidate that finds fewer pictures, tells fewer swaps apart or judges
fewer claims than the untuned backbone is left out, whatever it gains elsewhere.

The untuned backbone is a candidate too. Averaged over nine domains, published prompt tuning loses text-to-image
recall against it (CoOp 2.4 points, MaPLe 1.5: arXiv:2508.04028) while it gains image-to-text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lvlm_guard.adapters.retrieval.metrics import AT, RetrievalFigures
from lvlm_guard.errors import KnobError

UNTUNED = -1
"""The epoch of the backbone as it was."""


@dataclass(frozen=True)
class Candidate:
    """Weights that may be kept.

    Args:
        epoch: whose end they are of, from 0; -1 for the untuned backbone.
        figures: on validation.
        averaged: they are the average of all epochs, not those of one.
        claims: they were trained to judge claims, so that counts too.
    """

    epoch: int
    figures: RetrievalFigures
    averaged: bool = False
    claims: bool = False

    @property
    def score(self) -> float:
        """Mean of recall at 1, 5 and 10 both ways in percent, plus 100 times the verifier's AUROC where it is known.

        And 100 times that of claims, where they were trained.
        """
        both = [way[k] for way in (self.figures.image_to_text, self.figures.text_to_image) for k in AT]
        verifier = 0.0 if math.isnan(self.figures.auroc) else self.figures.auroc
        claims = self.figures.claims if self.claims and not math.isnan(self.figures.claims) else 0.0
        return 100 * (sum(both) / len(both) + verifier + claims)


def selected(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate of the highest score among those that lose nothing against the untuned backbone.

    Args:
        candidates: the untuned backbone (epoch -1) among them.

    Returns:
        One of them; of equal scores the untuned backbone, else the earliest.

    Raises:
        KnobError: the untuned backbone is missing, or the AUROC is known of some only.
    """
    untuned = next((candidate for candidate in candidates if candidate.epoch == UNTUNED), None)
    if untuned is None:
        raise KnobError(
            "The untuned backbone (epoch -1) is not among the candidates: measure it too, it may be the best."
        )
    if len({math.isnan(candidate.figures.auroc) for candidate in candidates}) > 1:
        raise KnobError("Some candidates have a verifier's AUROC and some have not, so their scores don't compare.")
    kept = [candidate for candidate in candidates if not _loses(candidate, untuned)]
    return max(kept, key=lambda candidate: (candidate.score, -candidate.epoch))


def _loses(candidate: Candidate, untuned: Candidate) -> bool:
    one, plain = candidate.figures, untuned.figures
    pairs = [(one.text_to_image[1], plain.text_to_image[1]), (one.auroc, plain.auroc)]
    if candidate.claims:
        pairs.append((one.claims, plain.claims))
    return any(ours < theirs for ours, theirs in pairs)  # what is not known is NaN, and loses nothing
