"""Weighted terms in one loss, checked before the first step and at every step.

A term is a function with `@term(name, needs)`: what it needs of a batch is asked for before the first step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from lvlm_guard.adapters import terms
from lvlm_guard.adapters.terms import TAU, consistency, ordered
from lvlm_guard.errors import GuardError, KnobError, did_you_mean

Rule = Literal["sum", "aligned", "meta"]


class LossError(GuardError):
    """A loss is not finite, so going on would destroy the weights; nothing was updated."""


@dataclass(frozen=True)
class LossInputs:
    """What a batch of n pairs gives to the terms, as said behind each; leave out what no term needs."""

    scores: Tensor | None = None  # [n, n] cosines, image i (row) with caption j (column)
    positive: Tensor | None = None  # [n] of image i with its own caption, if weighted by it; None: their diagonal
    negatives: Tensor | None = None  # [n, m] cosines of image i with its caption's swaps
    present: Tensor | None = None  # [n, m] bool: which swaps there are
    claims: Tensor | None = None  # [n, c] cosines of image i with claim j, less the one at which a claim is undecided
    claimed: Tensor | None = None  # [n, c] bool: which claims hold of which picture
    refuted: Tensor | None = None  # [n, c] bool: which don't
    categories: Tensor | None = None  # [n] integers, negative for none
    same: Tensor | None = None  # [n, n] bool: which captions are equal as texts
    swaps: Tensor | None = None  # [n, s] cosines of image i with every swap; -inf where it says what caption i says
    image: Tensor | None = None  # [n, d] adapted features
    text: Tensor | None = None
    frozen_image: Tensor | None = None  # [n, d] of the frozen backbone for the same pictures and captions
    frozen_text: Tensor | None = None
    experts: Tensor | None = None  # [n, e, d] normalised features of each caption by each expert
    prototypes: Tensor | None = None  # [n, d], the mean frozen feature of pictures that show what picture i shows
    centre: Tensor | None = None  # [d], the mean frozen feature of all pictures
    kept_image: Tensor | None = None  # [n, d] of pictures of which only what the untuned CLIP looks at most stays
    teacher: Tensor | None = None  # [n, n] logits of a larger CLIP, as `scores`
    null_image: Tensor | None = None  # [1, d] normalised feature of the NULL image
    null_text: Tensor | None = None  # [m, d] normalised features of non-visual texts
    chain: Tensor | None = None  # [n, k] scores of each picture's versions, the best first
    names: Sequence[str] | None = None  # c claims as sentences
    said: Tensor | None = None  # [c, d] their normalised features
    frozen_said: Tensor | None = None
    against: Tensor | None = None  # [k, d] normalised features of names far from all claims
    frozen_against: Tensor | None = None
    aids: Mapping[str, Any] | None = None  # module of a term that learns something itself, by the term's name


class LossValue(NamedTuple):
    """A loss, a scalar with a gradient, and each term's value before its weight, by name, for the log."""

    total: Tensor
    terms: dict[str, float]


Compute = Callable[[Any, Any], Tensor]


class Term(NamedTuple):
    """A term: the fields of `LossInputs` that it needs, and how it is computed of the stack and these."""

    needs: tuple[str, ...]
    compute: Compute


TERMS: dict[str, Term] = {}


def term(name: str, needs: Sequence[str]) -> Callable[[Compute], Compute]:
    """Register a term, so that `LossStack(more={name: weight})` knows it."""

    def registered(compute: Compute) -> Compute:
        TERMS[name] = Term(tuple(needs), compute)
        return compute

    return registered


@dataclass(frozen=True)
class LossStack:
    """Terms by weight; 0 leaves a term out, and it is not computed. The defaults are DCAR's, L_con + L_cate.

    Args:
        contrastive, hard_negative: weights of the contrastive term, and of the term against swapped captions.
        claims: weight of judging "a photo of a dog" for each picture by itself.
        consistency: weight of 1 - cos to the frozen features (8 in CoPrompt).
        anchoring_text, anchoring_image: weights of the absolute difference to frozen features (25, 10 in PromptSRC).
        agreement: weight of the divergence from the frozen backbone's scores (1 in PromptSRC).
        alpha: extra weight of negatives of the same category in the contrastive term.
        negclip: whether that term sets every image against the swaps of all captions of the batch too (NegCLIP,
            arXiv:2210.01936), not only against its own caption's.
        more: weights of further terms by name: "shift", "entropy", "guidance", or any other that `term` registered.
        rule: how gradients of terms are put together: "sum"; "aligned" takes from those of all other terms what
            opposes that of "agreement" with the frozen backbone (GLAD, arXiv:2507.13089); "meta" takes the sum on half
            a batch, by weights after a regulated step on the other half (GRAM, arXiv:2303.06571).
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
    more: Mapping[str, float] = field(default_factory=dict)
    rule: Rule = "sum"
    tau: float = TAU

    def __post_init__(self) -> None:
        numbers = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("more", "rule")}
        for name, value in {**numbers, **self.more}.items():
            if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise KnobError(f"{name} is {value!r}: give a finite number of at least 0.")
        for name in self.more:
            if name not in TERMS or name in numbers:
                raise KnobError(f"more has no term {name!r}. {did_you_mean(name, TERMS)}Known: {', '.join(TERMS)}.")
        if self.rule not in get_args(Rule) or (self.rule == "aligned" and not self.agreement):
            raise KnobError(f"rule is {self.rule!r}: give 'sum', 'meta', or 'aligned' with a weight of agreement.")
        if self.tau == 0:
            raise KnobError(f"tau is 0: give a temperature above it; CLIP's is {TAU}.")
        if not self.active:
            raise KnobError(f"Every term has weight 0, so nothing would be learned: give one of {', '.join(TERMS)}.")

    @property
    def active(self) -> tuple[str, ...]:
        """The terms that count."""
        return tuple(name for name in TERMS if self.weight(name) > 0)

    def weight(self, name: str) -> float:
        """Return the weight of a term."""
        return float(self.more[name] if name in self.more else getattr(self, name, 0.0))

    @property
    def needs(self) -> frozenset[str]:
        """The fields of `LossInputs` without which a term that counts can't be computed; ask before the first step."""
        swaps = ("swaps",) if self.negclip and self.contrastive > 0 else ()
        return frozenset([*swaps, *(needed for name in self.active for needed in TERMS[name].needs)])

    @property
    def needs_frozen(self) -> bool:
        """Whether features of the frozen backbone are needed."""
        return bool(self.needs & {"frozen_image", "frozen_text", "prototypes", "aids", "against", "teacher"})

    def __call__(self, given: LossInputs, learning: Sequence[nn.Parameter] = ()) -> LossValue:
        """Return the loss of a batch; what is trained, `learning`, is needed by the rule "aligned" alone.

        Raises:
            KnobError: what a term needs was not given.
            LossError: a term is NaN or infinite; the message names it.
        """
        missing = sorted(name for name in self.needs if getattr(given, name) is None)
        if missing:
            raise KnobError(
                f"The loss needs {', '.join(missing)}, which the batch does not bring: give them, or set the weight of "
                f"{', '.join(n for n in self.active if set(TERMS[n].needs) & set(missing))} to 0."
            )
        given = given if self.negclip else replace(given, swaps=None)
        first = next(value for name in self.needs if isinstance(value := getattr(given, name), Tensor))
        with terms.unchanged(first):  # a cosine in bfloat16 is off by a nat at CLIP's temperature
            values = {name: TERMS[name].compute(self, given) for name in self.active}
        logged = {name: float(value.detach()) for name, value in values.items()}
        bad = {name: value for name, value in logged.items() if not math.isfinite(value)}
        if bad:
            raise LossError(_not_finite(bad, given))
        weighed = {name: self.weight(name) * value for name, value in values.items()}
        if self.rule == "aligned" and len(weighed) > 1 and weighed["agreement"].requires_grad:
            general = weighed.pop("agreement")
            return LossValue(terms.aligned(torch.stack([*weighed.values()]).sum(), general, learning), logged)
        return LossValue(torch.stack([*weighed.values()]).sum(), logged)


def _not_finite(bad: dict[str, float], given: LossInputs) -> str:
    held = {one.name: getattr(given, one.name) for one in fields(given)}
    broken = [
        name
        for name, value in held.items()
        if isinstance(value, Tensor)
        and not bool((value.isfinite() | (value.isneginf() if name == "swaps" else False)).all())
    ]
    named = ", ".join(f"{name} ({value})" for name, value in bad.items())
    cause = "Its inputs are finite, so a sum ran over: tau is too small"
    if broken:
        cause = f"{', '.join(broken).capitalize()} of this batch already hold NaN or infinite values: "
        cause += "a learning rate too high, or a picture or weight that is broken"
    return (
        f"The loss is not finite in {named}. {cause}. Nothing was updated by this batch; go on from the last "
        "checkpoint with a lower learning rate."
    )


def _logits(stack: LossStack, image: Any, text: Any) -> Tensor:
    return (normalize(image.float(), dim=-1) @ normalize(text.float(), dim=-1).T) / stack.tau


def _direct(
    name: str, formula: Callable[..., Tensor], needs: Sequence[str], *, also: Sequence[str] = (), by: Sequence[str] = ()
) -> None:
    """Register a formula of what it needs, of what `also` a batch may have, and of settings of the stack."""

    def compute(stack: LossStack, given: LossInputs) -> Tensor:
        more = {key: getattr(given, key) for key in also} | {key: getattr(stack, key) for key in by}
        return formula(*(getattr(given, need) for need in needs), **more)

    term(name, needs)(compute)


@term("proxy", ["image", "names", "claimed", "refuted", "aids"])
def _proxy(_: LossStack, given: Any) -> Tensor:
    aid: terms.Proxies = given.aids["proxy"]
    value = terms.proxy_anchor(given.image, aid(given.names), given.claimed, given.refuted)
    return value + 0 * aid.own.sum()  # also where a batch has no claim


@term("unknown", ["image", "said", "claimed", "aids"])
def _unknown(stack: LossStack, given: Any) -> Tensor:
    return terms.generated(given.aids["unknown"], given.image, given.said, given.claimed, stack.tau)


@term("mixed", ["image", "said", "frozen_said", "claimed", "against", "frozen_against"])
def _mixed(stack: LossStack, given: Any) -> Tensor:
    shows = given.claimed.any(1)
    n, image = int(shows.sum()), given.image[shows]
    if not n:
        zero: Tensor = 0 * given.said.sum()
        return zero
    # drawn on the CPU, where every process draws the same
    share, drawn = torch.rand(n, 1).to(image), torch.randint(len(given.against), (n,)).to(image.device)
    true = given.claimed[shows]
    features, targets = terms.mixtures(image, given.frozen_said, given.frozen_against, true, share, drawn)
    logits = features @ torch.cat([given.said, given.against]).T / stack.tau
    return 2 * cross_entropy(logits, targets)


_direct("anchoring_text", terms.anchoring, ["text", "frozen_text"])
_direct("anchoring_image", terms.anchoring, ["image", "frozen_image"])
_direct("shift", terms.shift, ["image", "frozen_image", "text", "frozen_text"])
_direct("diversity", terms.diversity, ["experts"])
_direct("contrastive", terms.contrastive, ["scores"], also=["categories", "same", "swaps"], by=["tau", "alpha"])


@term("hard_negative", ["scores", "negatives"])
def _hard_negative(stack: LossStack, given: Any) -> Tensor:
    positive = given.scores.diagonal() if given.positive is None else given.positive
    return terms.hard_negative(positive, given.negatives, tau=stack.tau, present=given.present)


_direct("claims", terms.claims, ["claims", "claimed", "refuted"], by=["tau"])


@term("consistency", ["image", "text", "frozen_image", "frozen_text"])
def _consistency(_: LossStack, given: Any) -> Tensor:
    return consistency(given.image, given.frozen_image) + consistency(given.text, given.frozen_text)


@term("agreement", ["image", "text", "frozen_image", "frozen_text"])
def _agreement(stack: LossStack, given: Any) -> Tensor:
    frozen = _logits(stack, given.frozen_image, given.frozen_text)
    return terms.agreement(_logits(stack, given.image, given.text), frozen)


@term("entropy", ["claims"])
def _entropy(stack: LossStack, given: Any) -> Tensor:
    return terms.entropy(given.claims / stack.tau)


@term("guidance", ["experts", "frozen_text"])
def _guidance(_: LossStack, given: Any) -> Tensor:
    return consistency(given.experts.mean(1), given.frozen_text)


@term("directional", ["image", "prototypes", "centre"])
def _directional(_: LossStack, given: Any) -> Tensor:
    return consistency(given.image - given.centre, given.prototypes - given.centre)


@term("saliency", ["kept_image", "text", "frozen_image", "frozen_text"])
def _saliency(_: LossStack, given: Any) -> Tensor:
    return consistency(given.kept_image, given.frozen_image) + consistency(given.text, given.frozen_text)


@term("distilled", ["image", "text", "teacher"])
def _distilled(stack: LossStack, given: Any) -> Tensor:
    return terms.distilled(_logits(stack, given.image, given.text), given.teacher)


_direct("null", terms.unseen, ["text", "image", "null_text", "null_image"], by=["tau"])


@term("ordered", ["chain"])
def _ordered(_: LossStack, given: Any) -> Tensor:
    steps = ordered(given.chain[:, :-1], given.chain[:, 1:], 0.2)
    return ordered(given.chain[:, 0], given.chain[:, -1], 0.9) + steps
