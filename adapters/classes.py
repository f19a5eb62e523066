"""Terms that take a batch's claims as classes: proxies of them, classes without pictures, mixtures with others.

Two learn something of their own beside the prompts, their aids, which training drops when it is over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize

from lvlm_guard.adapters.terms import term

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


AIDS: Mapping[str, type[nn.Module]] = {"proxy": Proxies, "unknown": Generator}
"""What terms learn beside the prompts, by the term; each is made of the width of features and the classes' means."""


def proxy_anchor(features: Tensor, proxies: Tensor, true: Tensor, false: Tensor) -> Tensor:
    """Return the proxy anchor loss (arXiv:2003.13911), which "Learning Semantic Proxies" takes.

    Args:
        features: [n, d] of pictures.
        proxies: [c, d] of classes.
        true, false: [n, c] bool: which picture shows which class, and which is known not to.
    """
    cosines = normalize(features, dim=-1) @ normalize(proxies, dim=-1).T

    def gathered(logits: Tensor, which: Tensor) -> Tensor:  # log(1 + sum exp)
        none = torch.zeros_like(logits[:1])
        return torch.cat([none, logits.masked_fill(~which, -torch.inf)]).logsumexp(0)

    near, far = gathered(-SCALE * (cosines - MARGIN), true), gathered(SCALE * (cosines + MARGIN), false)
    value: Tensor = near.sum() / true.any(0).sum().clamp(min=1) + far.sum() / max(1, far.numel())
    return value


def mixtures(
    image: Tensor, text: Tensor, far: Tensor, true: Tensor, share: Tensor, drawn: Tensor
) -> tuple[Tensor, Tensor]:
    """Return pictures mixed with the texts of their labels and with those of names far from all, and soft targets.

    Source: LAPT (arXiv:2407.08966), cross-modal and cross-distribution mixing.

    Args:
        image: [n, d], of pictures that show a class each or several.
        text, far: [c, d] and [k, d], frozen features of classes and of names far from them.
        true: [n, c] bool.
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


@term("proxy", ["image", "names", "claimed", "refuted", "aids"])
def _proxy(_: Any, given: Any) -> Tensor:
    aid: Proxies = given.aids["proxy"]
    value: Tensor = proxy_anchor(given.image, aid(given.names), given.claimed, given.refuted)
    return value + 0 * aid.own.sum()  # also where a batch has no claim


@term("unknown", ["image", "said", "claimed", "aids"])
def _unknown(stack: Any, given: Any) -> Tensor:
    """Every second class of the batch is taken as one without pictures; the others have the mean of theirs."""
    generator, text = given.aids["unknown"], given.said
    value: Tensor = torch.stack([0 * parameter.sum() for parameter in generator.parameters()]).sum()
    known, new = text[::2], text[1::2]
    of = given.claimed[:, ::2].T.to(given.image)
    k = min(NEIGHBOURS, len(known) - 1)
    if k < 1:
        return value  # a class can't be made of others where there is one
    seen = normalize(of @ given.image.detach(), dim=-1)
    alike = (known @ known.T).detach().fill_diagonal_(-torch.inf).topk(k, 1).indices
    places = torch.arange(len(known), device=text.device)
    made = generator(known.detach(), known[alike].detach(), seen[alike])
    # and each neighbour of the class alone, as the release turns it round
    near = alike.flatten()
    one = places.repeat_interleave(k)
    turned = generator(known[near].detach(), known[one][:, None].detach(), seen[one][:, None])
    width = text.shape[1]
    value = value + width * (mse_loss(made, seen) + mse_loss(turned, seen[near]))
    value = value + 0.25 * cross_entropy(made @ known.T / stack.tau, places)
    value = value + 0.25 / k * cross_entropy(turned @ known.T / stack.tau, near)
    if len(new) > 1:
        best = (new @ known.T).detach().topk(k, 1).indices
        fresh = generator(new.detach(), known[best].detach(), seen[best])
        logits = fresh @ new.T / stack.tau
        value = value + 0.5 / k * cross_entropy(logits, torch.arange(len(new), device=text.device))
    return value


@term("mixed", ["image", "said", "frozen_said", "claimed", "against", "frozen_against"])
def _mixed(stack: Any, given: Any) -> Tensor:
    shows = given.claimed.any(1)
    n, image = int(shows.sum()), given.image[shows]
    if not n:
        zero: Tensor = 0 * given.said.sum()
        return zero
    # drawn on the CPU, where every process draws the same
    share, drawn = torch.rand(n, 1).to(image), torch.randint(len(given.against), (n,)).to(image.device)
    true = given.claimed[shows]
    features, targets = mixtures(image, given.frozen_said, given.frozen_against, true, share, drawn)
    logits = features @ torch.cat([given.said, given.against]).T / stack.tau
    return 2 * cross_entropy(logits, targets)
