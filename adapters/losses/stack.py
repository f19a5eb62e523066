"""Weighted terms in one loss, checked before the first step and at every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from lvlm_guard.adapters.losses.terms import (
    TAU,
    agreement,
    anchoring,
    claims,
    consistency,
    contrastive,
    hard_negative,
    unchanged,
)
from lvlm_guard.errors import GuardError, KnobError


class LossError(GuardError):
    """A loss is not finite, so going on would destroy the weights; nothing was updated."""


@dataclass(frozen=True)
class LossInputs:
    """What a batch of n pairs gives to the terms; leave out what no term needs.

    Args:
        scores: [n, n] cosines, image i (row) with caption j (column).
        positive: [n] cosines of image i with its own caption; None takes the diagonal of `scores`. Give it where the
            swaps' captions are weighted by the image and those of `scores` are not.
        negatives: [n, m] cosines of image i with its caption's swaps.
        present: [n, m] bool: which swaps there are.
        claims: [n, c] cosines of image i with claim j, less the cosine at which a claim is undecided.
        claimed, refuted: [n, c] bool: which claims hold of which picture, and which don't.
        categories: [n] integers, negative for none.
        same: [n, n] bool: which captions are equal as texts.
        swaps: [n, s] cosines of image i with every swap of the batch; -inf where it says what caption i says.
        image, text: [n, d] adapted features.
        frozen_image, frozen_text: [n, d] features of the frozen backbone for the same pictures and captions.
    """

    scores: Tensor | None = None
    positive: Tensor | None = None
    negatives: Tensor | None = None
    present: Tensor | None = None
    claims: Tensor | None = None
    claimed: Tensor | None = None
    refuted: Tensor | None = None
    categories: Tensor | None = None
    same: Tensor | None = None
    swaps: Tensor | None = None
    image: Tensor | None = None
    text: Tensor | None = None
    frozen_image: Tensor | None = None
    frozen_text: Tensor | None = None


@dataclass(frozen=True)
class LossValue:
    """A loss and what it is made of.

    Args:
        total: scalar with a gradient.
        terms: each term's value before its weight, by name; for the log.
    """

    total: Tensor
    terms: dict[str, float]


FEATURES = ("image", "text", "frozen_image", "frozen_text")
NEEDS: Mapping[str, tuple[str, ...]] = {
    "contrastive": ("scores",),
    "hard_negative": ("scores", "negatives"),
    "claims": ("claims", "claimed", "refuted"),
    "consistency": FEATURES,
    "anchoring_text": ("text", "frozen_text"),
    "anchoring_image": ("image", "frozen_image"),
    "agreement": FEATURES,
}


@dataclass(frozen=True)
class LossStack:
    """Terms by weight; 0 leaves a term out, and it is not computed. The defaults are DCAR's, L_con + L_cate.

    Args:
        contrastive: weight of the contrastive term.
        hard_negative: weight of the term against swapped captions.
        claims: weight of judging "a photo of a dog" for each picture by itself.
        consistency: weight of 1 - cos to the frozen features (8 in CoPrompt).
        anchoring_text: weight of the absolute difference to the frozen text features (25 in PromptSRC).
        anchoring_image: the same for images (10 in PromptSRC).
        agreement: weight of the divergence from the frozen backbone's scores (1 in PromptSRC).
        alpha: extra weight of negatives of the same category in the contrastive term.
        negclip: whether that term sets every image against the swaps of all captions of the batch too (NegCLIP,
            arXiv:2210.01936), not only against its own caption's.
        tau: temperature of every term.

    Raises:
        KnobError: a weight is negative or not finite, all are 0, or `tau` is not above 0.
    """

    contrastive: float = 1.0
    hard_negative: float = 1.0
    claims: float = 0.0
    consistency: float = 0.0
    anchoring_text: float = 0.0
    anchoring_image: float = 0.0
    agreement: float = 0.0
    alpha: float = 0.5
    negclip: bool = False
    tau: float = TAU

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise KnobError(f"{field.name} is {value!r}: give a finite number of at least 0.")
        if self.tau == 0:
            raise KnobError(f"tau is 0: give a temperature above it; CLIP's is {TAU}.")
        if not self.active:
            raise KnobError(f"Every term has weight 0, so nothing would be learned: give one of {', '.join(NEEDS)}.")

    @property
    def active(self) -> tuple[str, ...]:
        """The terms that count."""
        return tuple(name for name in NEEDS if getattr(self, name) > 0)

    @property
    def needs(self) -> frozenset[str]:
        """The fields of `LossInputs` without which a term that counts can't be computed; ask before the first step."""
        swaps = ("swaps",) if self.negclip and self.contrastive > 0 else ()
        return frozenset([*swaps, *(field for name in self.active for field in NEEDS[name])])

    @property
    def needs_frozen(self) -> bool:
        """Whether features of the frozen backbone are needed."""
        return bool(self.needs & {"frozen_image", "frozen_text"})

    def __call__(self, given: LossInputs) -> LossValue:
        """Return the loss of a batch.

        Raises:
            KnobError: what a term needs was not given.
            LossError: a term is NaN or infinite; the message names it.
        """
        missing = sorted(field for field in self.needs if getattr(given, field) is None)
        if missing:
            raise KnobError(
                f"The loss needs {', '.join(missing)}, which the batch does not bring: give them, or set the weight of "
                f"{', '.join(n for n in self.active if set(NEEDS[n]) & set(missing))} to 0."
            )
        first = next(value for value in (getattr(given, field) for field in self.needs) if value is not None)
        with unchanged(first):  # a cosine in bfloat16 is off by a nat at CLIP's temperature
            values = {name: _TERMS[name](self, given) for name in self.active}
        logged = {name: float(value.detach()) for name, value in values.items()}
        bad = {name: value for name, value in logged.items() if not math.isfinite(value)}
        if bad:
            raise LossError(_not_finite(bad, given))
        return LossValue(torch.stack([getattr(self, name) * value for name, value in values.items()]).sum(), logged)


def _not_finite(bad: dict[str, float], given: LossInputs) -> str:
    broken = [
        field.name
        for field in fields(given)
        if isinstance(value := getattr(given, field.name), Tensor)
        and not bool((value.isfinite() | (value.isneginf() if field.name == "swaps" else False)).all())
    ]
    named = ", ".join(f"{name} ({value})" for name, value in bad.items())
    cause = (
        f"{', '.join(broken)} of this batch already hold NaN or infinite values: a learning rate too high, or a "
        "picture or weight that is broken"
        if broken
        else "its inputs are finite, so a sum ran over: tau is too small"
    )
    return (
        f"The loss is not finite in {named}. {cause[0].upper()}{cause[1:]}. Nothing was updated by this batch; go on "
        "from the last checkpoint with a lower learning rate."
    )


def _scores_of(stack: LossStack, image: Any, text: Any) -> Tensor:
    from torch.nn.functional import normalize

    return (normalize(image.float(), dim=-1) @ normalize(text.float(), dim=-1).T) / stack.tau


# what a term is computed of; `needs` has been asked before
_TERMS: Mapping[str, Callable[[LossStack, Any], Tensor]] = {
    "contrastive": lambda stack, given: contrastive(
        given.scores,
        tau=stack.tau,
        categories=given.categories,
        same=given.same,
        alpha=stack.alpha,
        swaps=given.swaps if stack.negclip else None,
    ),
    "hard_negative": lambda stack, given: hard_negative(
        given.scores.diagonal() if given.positive is None else given.positive,
        given.negatives,
        tau=stack.tau,
        present=given.present,
    ),
    "claims": lambda stack, given: claims(given.claims, given.claimed, given.refuted, tau=stack.tau),
    "consistency": lambda _, given: (
        consistency(given.image, given.frozen_image) + consistency(given.text, given.frozen_text)
    ),
    "anchoring_text": lambda _, given: anchoring(given.text, given.frozen_text),
    "anchoring_image": lambda _, given: anchoring(given.image, given.frozen_image),
    "agreement": lambda stack, given: agreement(
        _scores_of(stack, given.image, given.text), _scores_of(stack, given.frozen_image, given.frozen_text)
    ),
}
