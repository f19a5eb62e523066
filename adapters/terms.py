"""The formulas of the terms, each pure, and what some learn beside the prompts, which training drops when it is over.

Features are [n, d]; similarities are cosines, not yet divided by the temperature. Everything is computed in float32
(float64 stays), also under autocast: sums of exponentials at a temperature of 0.01 overflow in half precision, and
bfloat16 is too coarse for differences of near-equal pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, normalize, softplus

TAU = 0.01  # CLIP's temperature after its pretraining, 1 / exp(logit_scale)


def full(tensor: Tensor) -> Tensor:
    """Return a half-precision tensor as float32, any other as it is."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def unchanged(tensor: Tensor) -> torch.autocast:
    """Return a context in which autocast leaves dtypes alone, on the device of a tensor."""
    return torch.autocast(tensor.device.type, enabled=False)


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
    on the negative's exponential, in both directions, of which it is the mean.

    Args:
        scores: [n, n], image i (row) with caption j (column); pair i belongs together. `tau` is the temperature.
        categories: [n] integers, the category of pair i; negative for a pair without one. None: no weights.
        same: [n, n] bool: caption j is caption i by its text. Such a pair is no negative and is left out.
        alpha: 0 gives CLIP's loss.
        swaps: [n, m], image i with swap j of any caption of the batch; -inf leaves one out. They are further
            negatives of the images, as in NegCLIP (arXiv:2210.01936). None: there are none.
    """
    logits = full(scores) / tau
    weight = torch.zeros_like(logits)
    diagonal = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    if categories is not None:
        alike = (categories[:, None] == categories[None]) & (categories[:, None] >= 0)
        weight = weight.masked_fill(alike & ~diagonal, torch.log1p(torch.tensor(alpha)).item())
    if same is not None:
        weight = weight.masked_fill(same & ~diagonal, -torch.inf)
    of_images = logits + weight
    if swaps is not None:
        of_images = torch.cat([of_images, full(swaps) / tau], 1)
    rows = of_images.logsumexp(1) - logits.diagonal()
    columns = (logits.T + weight.T).logsumexp(1) - logits.diagonal()
    return (rows.mean() + columns.mean()) / 2


def hard_negative(
    positive: Tensor, negatives: Tensor, *, tau: float | Tensor = TAU, present: Tensor | None = None
) -> Tensor:
    """Return how far captions stand above their own swaps, for the same picture: DCAR's L_cate (arXiv:2508.04028).

    It is the mean over the pairs that have a swap; 0 where none has.

    Args:
        positive: [n], image i with its caption.
        negatives: [n, m], image i with the m swaps of its caption.
        present: [n, m] bool: which swaps there are; None for all.
    """
    positive, negatives = full(positive), full(negatives)
    there = torch.ones_like(negatives, dtype=torch.bool) if present is None else present
    logits = torch.cat([positive[:, None], negatives.masked_fill(~there, -torch.inf)], 1) / tau
    each = (logits.logsumexp(1) - logits[:, 0])[there.any(1)]
    return each.mean() if len(each) else positive.sum() * 0


def claims(scores: Tensor, true: Tensor, false: Tensor, *, tau: float | Tensor = TAU) -> Tensor:
    """Return how well each picture's claims are judged, each by itself: true ones above 0, false ones below.

    The pairwise sigmoid loss of SigLIP (Zhai et al., ICCV 2023, arXiv:2303.15343); the mean of the means over true and
    over false claims, which is ours: few objects are in a picture, and all others are not.

    Args:
        scores: [n, m], image i with claim j, less the cosine at which a claim is undecided.
        true, false: [n, m] bool; a claim that is neither is unknown, and left out.
    """
    logits = full(scores) / tau
    each = [part.mean() for part in (softplus(-logits[true]), softplus(logits[false])) if part.numel()]
    return torch.stack(each).mean() if each else scores.sum() * 0


def consistency(features: Tensor, frozen: Tensor) -> Tensor:
    """Return the mean of 1 - cos between adapted features and those of the frozen backbone, [n, d] each.

    Source: CoPrompt (Roy and Etemad, ICLR 2024, arXiv:2306.01195), weight 8.
    """
    return (1 - torch.cosine_similarity(full(features), full(frozen), dim=-1)).mean()


def anchoring(features: Tensor, frozen: Tensor) -> Tensor:
    """Return the mean absolute difference of normalised features to the frozen ones, [n, d] each.

    Source: PromptSRC (Khattak et al., ICCV 2023, arXiv:2307.06948), weights 25 for texts and 10 for images.
    """
    return (normalize(full(features), dim=-1) - normalize(full(frozen), dim=-1)).abs().mean()


def _divergence(logits: Tensor, target: Tensor) -> Tensor:
    wanted = log_softmax(full(target), -1)
    return kl_div(log_softmax(full(logits), -1), wanted, reduction="sum", log_target=True)


def agreement(logits: Tensor, frozen: Tensor) -> Tensor:
    """Return KL(softmax frozen || softmax logits), summed and divided by the number of logits, [n, m] each.

    Source: PromptSRC (arXiv:2307.06948), weight 1; the division is its release's.
    """
    return _divergence(logits, frozen) / logits.numel()


def distilled(logits: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(softmax teacher || softmax logits), the mean over rows of logits [n, m] each.

    Source: CasPL (arXiv:2409.17805), stage 1; which pair belongs together is not asked.
    """
    return _divergence(logits, teacher) / len(logits)


def shift(image: Tensor, frozen_image: Tensor, text: Tensor, frozen_text: Tensor) -> Tensor:
    """Return the mean of | ||f - f0|| - ||t - t0|| | over pairs, [n, d] each: both sides are to move equally far.

    Source: RESTORE (arXiv:2403.06136); the form is ours, after its description.
    """
    # the norm has no slope at 0, where training begins
    moved = [
        ((full(a) - full(b)).square().sum(-1) + 1e-12).sqrt() for a, b in ((image, frozen_image), (text, frozen_text))
    ]
    return (moved[0] - moved[1]).abs().mean()


def entropy(logits: Tensor) -> Tensor:
    """Return the mean entropy of rows of logits [n, m] less the entropy of their mean: confident, and balanced.

    Source: AD-CLIP (arXiv:2308.05659) and TFUP (arXiv:2404.16339); the two together are ours.
    """
    p = log_softmax(full(logits), -1).exp()

    def of(shares: Tensor) -> Tensor:
        return -(shares * shares.clamp(min=torch.finfo(shares.dtype).tiny).log()).sum(-1)

    return of(p).mean() - of(p.mean(0))


def diversity(features: Tensor) -> Tensor:
    """Return the mean squared cosine of pairs of experts' features [n, e, d]; 0 for one expert.

    Source: MSGCoOp (arXiv:2507.21786).
    """
    f = normalize(full(features), dim=-1)
    e = f.shape[1]
    first, second = torch.triu_indices(e, e, 1)
    return (f[:, first] * f[:, second]).sum(-1).square().mean() if e > 1 else f.sum() * 0


def ordered(better: Tensor, worse: Tensor, margin: float) -> Tensor:
    """Return the mean of max(0, margin - (better - worse)) over scores [n] of pairs in order.

    Source: CLIP-LIT (arXiv:2303.17569), margins .9 between the ends of a chain and .2 between its steps.
    """
    return (margin - (full(better) - full(worse))).clamp(min=0).mean()


def unseen(text: Tensor, image: Tensor, null_text: Tensor, null_image: Tensor, tau: float = TAU) -> Tensor:
    """Return how well texts find their picture among all and one more, which non-visual texts are to find.

    Normalised features: [n, d] of pairs, [m, d] of non-visual texts, [1, d] of the NULL image.
    Source: VisualNESS (arXiv:2305.10434): what evokes no picture is matched with one NULL image.
    """
    logits = full(torch.cat([text, null_text]) @ torch.cat([image, null_image]).T) / tau
    places = torch.arange(len(logits), device=logits.device).clamp(max=len(image))
    return cross_entropy(logits, places)


def aligned(task: Tensor, general: Tensor, learning: Sequence[Tensor]) -> Tensor:
    """Return a scalar of the value task + general whose gradient has no part of the task's that opposes the general.

    The task's gradient g is replaced by g - min(0, g.h) / h.h h, h the general gradient, over all parameters together.
    Source: GLAD (arXiv:2507.13089) after ProGrad (arXiv:2205.14865); which loss is general is the caller's.
    """
    flat = []
    for loss in (task, general):
        slopes = torch.autograd.grad(loss, list(learning), retain_graph=True, allow_unused=True, materialize_grads=True)
        flat.append(torch.cat([slope.flatten() for slope in slopes]))
    g, h = flat
    kept = g - (g @ h).clamp(max=0) / h.square().sum().clamp(min=torch.finfo(h.dtype).tiny) * h + h
    steered = (torch.cat([parameter.flatten() for parameter in learning]) * kept).sum()
    return (task + general).detach() + steered - steered.detach()  # that value, and that gradient


def regulated(slope: Tensor, gate: Tensor | None = None) -> Tensor:
    """Return a gradient [..., d] times sigmoid(W g), W [d, d] the gate; as it is without one.

    Source: GRAM (arXiv:2303.06571), which learns the gate and a start of prompts together; the form is ours.
    """
    return slope if gate is None else slope * torch.sigmoid(slope @ gate.T)


MARGIN, SCALE = 0.1, 32.0
"""Of proxy anchor (arXiv:2003.13911)."""

NEIGHBOURS = 3
"""Known classes that an unknown one is made of, OGEN's."""


class Proxies(nn.Module):
    """A proxy of each class, norm(mean frozen feature of its pictures + what is learnt).

    Source: "Learning Semantic Proxies from Visual Prompts" (arXiv:2402.02340), P23; the mean frozen feature stands for
    the outputs of its prompts of classes, which is ours.

    Args:
        width: of features.
        means: class -> that mean.
    """

    means: Tensor

    def __init__(self, width: int, means: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.places = {name: k for k, name in enumerate(means)}
        self.register_buffer("means", normalize(torch.stack([*means.values()]), dim=-1))
        self.own = nn.Parameter(torch.zeros(len(means), width))

    def forward(self, names: Sequence[str]) -> Tensor:
        """Return the proxies of some classes, [c, width]."""
        chosen = torch.tensor([self.places[name] for name in names], dtype=torch.long)
        return normalize(self.means[chosen] + self.own[chosen], dim=-1)


def proxy_anchor(features: Tensor, proxies: Tensor, true: Tensor, false: Tensor) -> Tensor:
    """Return the proxy anchor loss (arXiv:2003.13911), which "Learning Semantic Proxies" takes.

    Of pictures [n, d] and classes [c, d]; [n, c] bool say which shows which, and which is known not to.
    """
    cosines = normalize(features, dim=-1) @ normalize(proxies, dim=-1).T

    def summed(logits: Tensor, which: Tensor) -> Tensor:  # log(1 + sum exp)
        none = torch.zeros_like(logits[:1])
        return torch.cat([none, logits.masked_fill(~which, -torch.inf)]).logsumexp(0)

    near, far = summed(-SCALE * (cosines - MARGIN), true), summed(SCALE * (cosines + MARGIN), false)
    value: Tensor = near.sum() / true.any(0).sum().clamp(min=1) + far.sum() / max(1, far.numel())
    return value


class Generator(nn.Module):
    """Makes a feature of a picture of a class that is known by name alone, of its nearest classes: OGEN's
    (arXiv:2401.15914), L11. Asks by the class's text among the texts of known classes for their pictures."""

    def __init__(self, width: int, means: Mapping[str, Tensor]) -> None:
        super().__init__()
        heads = next(heads for heads in (4, 2, 1) if width % heads == 0)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.further = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, text: Tensor, known: Tensor, seen: Tensor) -> Tensor:
        """Return features [u, width] of texts [u, width], by k classes each: texts and pictures [u, k, width]."""
        found = self.attention(text[:, None], known, seen, need_weights=False)[0][:, 0]
        return normalize(found + self.further(found), dim=-1)


def generated(generator: Generator, image: Tensor, text: Tensor, true: Tensor, tau: float = TAU) -> Tensor:
    """Return how well features are made of classes: every second one is taken as one without pictures, the others have
    the mean of theirs, see `Generator`. Of pictures [n, d] and classes [c, d]; [n, c] bool say which shows which."""
    value: Tensor = torch.stack([0 * parameter.sum() for parameter in generator.parameters()]).sum()
    known, new = text[::2], text[1::2]
    k = min(NEIGHBOURS, len(known) - 1)
    if k < 1:
        return value  # a class can't be made of others where there is one
    seen = normalize(true[:, ::2].T.to(image) @ image.detach(), dim=-1)
    alike = (known @ known.T).detach().fill_diagonal_(-torch.inf).topk(k, 1).indices
    places = torch.arange(len(known), device=text.device)
    made = generator(known.detach(), known[alike].detach(), seen[alike])
    # and each neighbour of the class alone, as the release turns it round
    near = alike.flatten()
    one = places.repeat_interleave(k)
    turned = generator(known[near].detach(), known[one][:, None].detach(), seen[one][:, None])
    value = value + text.shape[1] * (nn.functional.mse_loss(made, seen) + nn.functional.mse_loss(turned, seen[near]))
    value = value + 0.25 * cross_entropy(made @ known.T / tau, places)
    value = value + 0.25 / k * cross_entropy(turned @ known.T / tau, near)
    if len(new) > 1:
        best = (new @ known.T).detach().topk(k, 1).indices
        fresh = generator(new.detach(), known[best].detach(), seen[best])
        logits = fresh @ new.T / tau
        value = value + 0.5 / k * cross_entropy(logits, torch.arange(len(new), device=text.device))
    return value


AIDS: Mapping[str, type[nn.Module]] = {"proxy": Proxies, "unknown": Generator}
"""What terms learn beside the prompts, by the term; each is made of the width of features and the classes' means."""


def mixtures(
    image: Tensor, text: Tensor, far: Tensor, true: Tensor, share: Tensor, drawn: Tensor
) -> tuple[Tensor, Tensor]:
    """Return pictures mixed with the texts of their labels and with those of names far from all, and soft targets.

    Source: LAPT (arXiv:2407.08966), cross-modal and cross-distribution mixing.

    Args:
        image: [n, d], of pictures that show a class each or several, as `true` [n, c] says.
        text, far: [c, d] and [k, d], frozen features of classes and of names far from them.
        share: [n, 1] of the picture.
        drawn: [n], which far name.

    Returns:
        Features [2n, d] and targets [2n, c + k] that sum to 1.
    """
    labels = true.to(image) / true.sum(1, keepdim=True)
    other = nn.functional.one_hot(drawn, len(far)).to(image)
    across = share * image + (1 - share) * (labels @ text)
    beyond = share * image + (1 - share) * far[drawn]
    targets = [torch.cat([labels, 0 * other], 1), torch.cat([share * labels, (1 - share) * other], 1)]
    return normalize(torch.cat([across, beyond]), dim=-1), torch.cat(targets)
