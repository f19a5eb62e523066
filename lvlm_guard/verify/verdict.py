"""What a matcher's figures say of one claim.

Source: adapters.md 4.3, after DCAR (arXiv:2508.04028), which tells captions from their counterfactual swaps. With n
swaps, sentences that differ from the claim in one thing and should not hold,

    p = softmax([S(claim), S(swap_1), ..., S(swap_n)] / tau)[0]        margin = S(claim) - max S(swap)

and without any the matcher's own probability that the claim holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lvlm_guard.errors import KnobError

Label = Literal["supported", "unsure", "unsupported"]

ABSOLUTE = 0.25
"""Probability of a matcher under which a claim counts as unsupported, where nothing says otherwise."""


@dataclass(frozen=True)
class Thresholds:
    """Where verdicts change; raises `KnobError` where they are out of range or order.

    Args:
        unsupported: probability under which a claim is; None for chance, 1 / (n + 1) with n swaps, and for
            `ABSOLUTE` without any.
        supported: probability from which a claim is; between the two it is unsure.
    """

    unsupported: float | None = None
    supported: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= (self.unsupported or 0.0) <= self.supported <= 1:
            raise KnobError(
                f"The verdicts' thresholds are {self.unsupported} and {self.supported}: give 0 <= unsupported <= "
                "supported <= 1."
            )

    def label(self, p: float, swaps: int) -> Label:
        """Return the verdict on a probability that stood against so many swaps."""
        low = self.unsupported
        if low is None:
            low = min(1 / (swaps + 1) if swaps else ABSOLUTE, self.supported)
        return "unsupported" if p < low else "supported" if p >= self.supported else "unsure"


@dataclass(frozen=True)
class Verdict:
    """What is held of one claim.

    Args:
        claim: the sentence.
        p_supported: probability that it holds, 0 to 1.
        margin: by how much its similarity exceeds the best swap's; without swaps that of the probability over 1/2.
        runner_up: the best swap; None without any.
        label: supported, unsure or unsupported.
        kind: "swaps" where it stood against swaps, "absolute" where the matcher's own probability decided, "abstained"
            where the matcher does not know: it was not checked.
    """

    claim: str
    p_supported: float
    margin: float
    runner_up: str | None
    label: Label
    kind: Literal["swaps", "absolute", "abstained"]

    @property
    def doubtful(self) -> bool:
        """Whether a reader should be told."""
        return self.label != "supported"


def against_swaps(
    claim: str,
    similarity: float,
    swaps: Sequence[tuple[str, float]],
    temperature: float,
    thresholds: Thresholds | None = None,
) -> Verdict:
    """Return the verdict on a claim that stands against its swaps.

    Args:
        claim, similarity: the sentence, and how similar the picture is to it.
        swaps: each with its similarity, at least one, else raises `KnobError`.
        temperature: tau, in units of similarity, above 0; 0.01 is CLIP's own.
        thresholds: None for the defaults.
    """
    if not swaps or not temperature > 0:
        raise KnobError(f"{len(swaps)} swaps at temperature {temperature}: give at least one, and a number above 0.")
    runner_up, best = max(swaps, key=lambda swap: swap[1])
    top = max(similarity, best)
    weights = [math.exp((value - top) / temperature) for value in (similarity, *(value for _, value in swaps))]
    p = weights[0] / sum(weights)
    label = (thresholds or Thresholds()).label(p, len(swaps))
    return Verdict(claim, p, similarity - best, runner_up, label, "swaps")


def absolute(claim: str, p: float, thresholds: Thresholds | None = None) -> Verdict:
    """Return the verdict on a claim by the matcher's own probability that it holds."""
    return Verdict(claim, p, p - 0.5, None, (thresholds or Thresholds()).label(p, 0), "absolute")
