"""The terms, each pure. Features are [n, d]; similarities are cosines, not yet divided by the temperature.

Everything is computed in float32 (float64 stays), also under autocast: sums of exponentials at a temperature of 0.01
overflow in half precision, and bfloat16 is too coarse for differences of near-equal pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div, log_softmax, normalize, softplus


def full(tensor: Tensor) -> Tensor:
    """Return a half-precision tensor as float32, any other as it is."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def unchanged(tensor: Tensor) -> torch.autocast:
    """Return a context in which autocast leaves dtypes alone, on the device of a tensor."""
    return torch.autocast(tensor.device.type, enabled=False)


TAU = 0.01  # CLIP's temperature after its pretraining, 1 / exp(logit_scale)

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


def contrastive(
    scores: Tensor,
    *,
    tau: float | Tensor = TAU,
    categories: Tensor | None = None,
    same: Tensor | None = None,
    alpha: float = 0.5,
    swaps: Tensor | None = None,
) -> Tensor:
    """Return the contrastive loss of a batch in which captions of one category count more against each other.

    DCAR's weight 1 + alpha (arXiv:2508.04028) for captions of the same category; where it stands in the sum is ours:
    on the negative's exponential, in both directions.

    Args:
        scores: [n, n], image i (row) with caption j (column); pair i belongs together.
        tau: temperature.
        categories: [n] integers, the category of pair i; negative for a pair without one. None: no weights.
        same: [n, n] bool: caption j is caption i by its text. Such a pair is no negative and is left out.
        alpha: 0 gives CLIP's loss.
        swaps: [n, m], image i with swap j of any caption of the batch; -inf leaves one out. They are further
            negatives of the images, as in NegCLIP (arXiv:2210.01936). None: there are none.

    Returns:
        A scalar: the mean of both directions.
    """
    scores = _precise(scores)
    n = len(scores)
    weight = torch.zeros_like(scores)
    diagonal = torch.eye(n, dtype=torch.bool, device=scores.device)
    if categories is not None:
        alike = (categories[:, None] == categories[None]) & (categories[:, None] >= 0)
        weight = weight.masked_fill(alike & ~diagonal, torch.log1p(torch.tensor(alpha)).item())
    if same is not None:
        weight = weight.masked_fill(same & ~diagonal, -torch.inf)
    logits = scores / tau
    weight = weight.to(logits)
    of_images = logits + weight
    if swaps is not None:
        of_images = torch.cat([of_images, _precise(swaps) / tau], 1)
    rows = of_images.logsumexp(1) - logits.diagonal()
    columns = (logits.T + weight.T).logsumexp(1) - logits.diagonal()
    return (rows.mean() + columns.mean()) / 2


def hard_negative(
    positive: Tensor, negatives: Tensor, *, tau: float | Tensor = TAU, present: Tensor | None = None
) -> Tensor:
    """Return how far captions stand above their own swaps, for the same picture: DCAR's L_cate (arXiv:2508.04028).

    Args:
        positive: [n], image i with its caption.
        negatives: [n, m], image i with the m swaps of its caption.
        tau: temperature.
        present: [n, m] bool: which swaps there are; None for all. A caption without any adds 0 to the mean.

    Returns:
        A scalar: the mean over the pairs that have a swap; 0 where none has.
    """
    positive, negatives = _precise(positive), _precise(negatives)
    if present is not None:
        negatives = negatives.masked_fill(~present, -torch.inf)
        having = present.any(1)
    else:
        having = torch.full_like(positive, negatives.shape[1] > 0, dtype=torch.bool)
    logits = torch.cat([positive[:, None], negatives], 1) / tau
    each = logits.logsumexp(1) - logits[:, 0]
    return each[having].mean() if bool(having.any()) else positive.sum() * 0


def claims(scores: Tensor, true: Tensor, false: Tensor, *, tau: float | Tensor = TAU) -> Tensor:
    """Return how well each picture's claims are judged, each by itself: true ones above 0, false ones below.

    The pairwise sigmoid loss of SigLIP (Zhai et al., ICCV 2023, arXiv:2303.15343); true and false claims count
    alike, which is ours: few objects are in a picture, and all others are not.

    Args:
        scores: [n, m], image i with claim j, less the cosine at which a claim is undecided.
        true, false: [n, m] bool; a claim that is neither is unknown, and left out.
        tau: temperature.

    Returns:
        A scalar: the mean of the means over true and over false claims, of the kinds that there are.
    """
    logits = _precise(scores) / tau
    each = [part.mean() for part in (softplus(-logits[true]), softplus(logits[false])) if part.numel()]
    return torch.stack(each).mean() if each else scores.sum() * 0


def consistency(features: Tensor, frozen: Tensor) -> Tensor:
    """Return the mean of 1 - cos between adapted features and those of the frozen backbone, [n, d] each.

    Source: CoPrompt (Roy and Etemad, ICLR 2024, arXiv:2306.01195), weight 8.
    """
    return (1 - cosine_similarity(_precise(features), _precise(frozen), dim=-1)).mean()


def anchoring(features: Tensor, frozen: Tensor) -> Tensor:
    """Return the mean absolute difference of normalised features to the frozen ones, [n, d] each.

    Source: PromptSRC (Khattak et al., ICCV 2023, arXiv:2307.06948), weights 25 for texts and 10 for images.
    """
    return (normalize(_precise(features), dim=-1) - normalize(_precise(frozen), dim=-1)).abs().mean()


def agreement(logits: Tensor, frozen: Tensor) -> Tensor:
    """Return KL(softmax frozen || softmax logits), summed and divided by the number of logits, [n, m] each.

    Source: PromptSRC (arXiv:2307.06948), weight 1; the division is its release's.
    """
    target = log_softmax(_precise(frozen), -1)
    return kl_div(log_softmax(_precise(logits), -1), target, reduction="sum", log_target=True) / logits.numel()


def shift(image: Tensor, frozen_image: Tensor, text: Tensor, frozen_text: Tensor) -> Tensor:
    """Return the mean of | ||f - f0|| - ||t - t0|| | over pairs, [n, d] each: both sides are to move equally far.

    Source: RESTORE (arXiv:2403.06136); the form is ours, after its description.
    """
    moved = [_length(_precise(a) - _precise(b)) for a, b in ((image, frozen_image), (text, frozen_text))]
    return (moved[0] - moved[1]).abs().mean()


def _length(x: Tensor) -> Tensor:
    # the norm has no slope at 0, where training begins
    return (x.square().sum(-1) + 1e-12).sqrt()


def entropy(logits: Tensor) -> Tensor:
    """Return the mean entropy of rows of logits [n, m] less the entropy of their mean: confident, and balanced.

    Source: AD-CLIP (arXiv:2308.05659) and TFUP (arXiv:2404.16339); the two together are ours.
    """
    p = log_softmax(_precise(logits), -1).exp()

    def of(shares: Tensor) -> Tensor:
        return -(shares * shares.clamp(min=torch.finfo(shares.dtype).tiny).log()).sum(-1)

    return of(p).mean() - of(p.mean(0))


def diversity(features: Tensor) -> Tensor:
    """Return the mean squared cosine of pairs of experts' features [n, e, d]; 0 for one expert.

    Source: MSGCoOp (arXiv:2507.21786).
    """
    f = normalize(_precise(features), dim=-1)
    e = f.shape[1]
    first, second = torch.triu_indices(e, e, 1)
    return (f[:, first] * f[:, second]).sum(-1).square().mean() if e > 1 else f.sum() * 0


def ordered(better: Tensor, worse: Tensor, margin: float) -> Tensor:
    """Return the mean of max(0, margin - (better - worse)) over scores [n] of pairs in order.

    Source: CLIP-LIT (arXiv:2303.17569), margins .9 between the ends of a chain and .2 between its steps.
    """
    return (margin - (_precise(better) - _precise(worse))).clamp(min=0).mean()


def distilled(logits: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(softmax teacher || softmax logits), the mean over rows of logits [n, m] each.

    Source: CasPL (arXiv:2409.17805), stage 1; which pair belongs together is not asked.
    """
    target = log_softmax(_precise(teacher), -1)
    return kl_div(log_softmax(_precise(logits), -1), target, reduction="batchmean", log_target=True)


def unseen(text: Tensor, image: Tensor, null_text: Tensor, null_image: Tensor, tau: float = TAU) -> Tensor:
    """Return how well texts find their picture among all and one more, which non-visual texts are to find.

    Source: VisualNESS (arXiv:2305.10434): what evokes no picture is matched with one NULL image.

    Args:
        text, image: [n, d] normalised features of pairs.
        null_text: [m, d] of non-visual texts.
        null_image: [1, d] of the NULL image.
        tau: temperature.
    """
    logits = _precise(torch.cat([text, null_text]) @ torch.cat([image, null_image]).T) / tau
    places = torch.arange(len(logits), device=logits.device).clamp(max=len(image))
    return cross_entropy(logits, places)


def aligned(task: Tensor, general: Tensor, learning: Sequence[Tensor]) -> Tensor:
    """Return a scalar of the value task + general whose gradient has no part of the task's that opposes the general.

    The task's gradient g is replaced by g - min(0, g.h) / h.h h, h the general gradient, over all parameters together.
    Source: GLAD (arXiv:2507.13089) after ProGrad (arXiv:2205.14865); which loss is general is the caller's.

    Args:
        task, general: losses of one graph.
        learning: the parameters.
    """
    flat = []
    for loss in (task, general):
        slopes = torch.autograd.grad(loss, list(learning), retain_graph=True, allow_unused=True)
        pairs = zip(learning, slopes, strict=True)
        flat.append(torch.cat([(torch.zeros_like(p) if slope is None else slope).flatten() for p, slope in pairs]))
    g, h = flat
    kept = g - (g @ h).clamp(max=0) / h.square().sum().clamp(min=torch.finfo(h.dtype).tiny) * h + h
    steered = (torch.cat([parameter.flatten() for parameter in learning]) * kept).sum()
    return (task + general).detach() + steered - steered.detach()  # that value, and that gradient


def regulated(slope: Tensor, gate: Tensor | None = None) -> Tensor:
    """Return a gradient [..., d] times sigmoid(W g), W [d, d] the gate; as it is without one.

    Source: GRAM (arXiv:2303.06571), which learns the gate and a start of prompts together; the form is ours.
    """
    return slope if gate is None else slope * torch.sigmoid(slope @ gate.T)


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
