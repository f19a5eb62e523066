"""Vote: where the model is undecided, the matcher votes on what it is about to name.

Ours. A matcher can say how well the picture supports each thing that the model could name next; it is
asked where the plausibility constraint (APC) leaves more than one token, and only there:

    z(c) = l(c) + lambda * logit(p(claim(c)))    for survivors c with a claim, p clipped at .001
    z(c) = l(c)                                  for survivors without one

A product of two experts within the plausible set: no second branch, no second cache, no gradient. In
captions and other free text a claim is an object of a vocabulary that a token starts or goes on ("is
there a dog in the image?"); in answers to yes/no questions it is the question, for the tokens that
start "yes"; where a text asks for more beside such a question, both. Other languages have no claims, so no vote.

Related: DLC (arXiv:2506.21509) scores the running text by CLIP with each of the top tokens at every
step; CLIP-guided decoding (arXiv:2402.15300) ranks sentences; Woodpecker (arXiv:2310.16045) corrects
finished answers. Measured honestly beside the matcher alone: on yes/no questions vote is about as good
as its matcher, no better; what a matcher can't do is write.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lvlm_guard.engine.assembly import check_alpha, check_beta, complement, cut
from lvlm_guard.engine.method import Branch, Constrained, Step
from lvlm_guard.errors import KnobError
from lvlm_guard.matching import Vocabulary, load_matcher
from lvlm_guard.matching.claims import finder_of
from lvlm_guard.matching.questions import YES, wants_nothing_else, yes_no_claim
from lvlm_guard.matching.views import Frame, check_frame, masked_view, matcher_of
from lvlm_guard.matching.vocabulary import Objects, article

if TYPE_CHECKING:
    from PIL.Image import Image

    from lvlm_guard.engine.call import Call
    from lvlm_guard.matching import Matcher

CLIP = 1e-3
"""Probabilities are clipped to [CLIP, 1 - CLIP], so that one vote weighs 6.9 nats at most."""


@dataclass(frozen=True)
class Vote(Constrained):
    """z = l + lambda * logit(p) for survivors with a claim, within the plausibility constraint.

    Args:
        lam: lambda, the weight of the matcher's log-odds, >= 0; 1 and beta .1 were chosen on the embedded
            world's validation split.
        beta: plausibility cut, a share of the best token's probability, 0 to 1.
        alpha: also add AGLA's local branch with this weight; 0 (no branch) measured better.
        objects: what may be voted on in free text: None for COCO's 80 categories with synonyms, names (each
            with synonyms after commas), or the path of a list.
        template: the claim about an object; {article} is its "a" or "an".
        by_word: claim the word itself ("is there a pigeon ...") instead of its category ("... a bird ...").
        prefetch: ask about the whole vocabulary in one batch at the first need, instead of only about what a
            step could name; for matchers whose batches cost little more than a single text (GPUs).
        claim: what a "yes" would mean, for prompts whose question is not found.
        matcher: a registered name, a hub id or folder, a matcher, or None for the model's default.
        frame: of the local branch, as in `AGLA`.

    With several pictures in a prompt, a claim holds as well as in the picture that supports it best.

    Raises:
        KnobError: a knob is out of range, or the objects can't be read.
    """

    name: ClassVar[str] = "vote"
    asks_about_pictures: ClassVar[bool] = True
    lam: float = 1.0
    beta: float = 0.1
    alpha: float = 0.0
    objects: Objects = None
    template: str = "is there {article} {object} in the image?"
    by_word: bool = False
    prefetch: bool = False
    claim: str | None = None
    matcher: Any = None
    frame: Frame = "auto"

    def __post_init__(self) -> None:
        check_alpha(self.lam, "lam (lambda)")
        check_alpha(self.alpha)
        check_beta(self.beta)
        check_frame(self.frame)
        if isinstance(self.objects, list):
            object.__setattr__(self, "objects", tuple(self.objects))
        Vocabulary.of(self.objects)
        try:
            if "dog" not in self.template.format(article="a", object="dog"):
                raise KeyError("object")
        except (KeyError, IndexError, ValueError) as error:
            raise KnobError(
                f"The template {self.template!r} can't be filled in ({error}): write {{object}}, and {{article}} where "
                "its 'a' or 'an' belongs, such as 'is there {article} {object} in the image?'."
            ) from error

    def branches(self) -> tuple[Branch, ...]:
        """Return no branch, or AGLA's local one where `alpha` weighs it."""
        return (Branch("local", pixels=self._view),) if self.alpha > 0 else ()

    def _view(self, call: Call) -> dict[str, Tensor]:
        return masked_view(call, self.matcher, self.frame)

    def check(self, call: Call) -> None:
        """Raise where a call can't be voted on.

        Raises:
            TextError: a picture comes without a question, and the claim is not given.
            WeightsError: the matcher can't be loaded.
            UnsupportedCallError: the matcher gives no probabilities.
        """
        if self.claim is None or self.alpha > 0:
            call.require_text()
        matcher_of(call, self.matcher).require_support()

    def decided(self, step: Step) -> Tensor:
        """Where one token is plausible, no vote can change it."""
        return step.plausible(self.beta).sum(-1) == 1

    def assemble(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        """Return the logits with the matcher's votes added, within the constraint."""
        keep = step.plausible(self.beta)
        assembled = step.logits
        if self.alpha > 0:
            assembled = complement(assembled, self.other(step, branches, step.logits), self.alpha)
        if self.lam > 0:
            votes = self._votes(step, keep)
            assembled = voted(assembled, [(row, token, self.lam * odds) for row, token, odds in votes])
        return cut(assembled, step.logits, keep)

    def _votes(self, step: Step, keep: Tensor) -> list[tuple[int, int, float]]:
        """Return (row, token, log-odds of its claim); leaves the claims in the step."""
        ballot: _Ballot | None = step.call.memory.get("vote")
        if ballot is None:
            ballot = step.call.memory["vote"] = _Ballot(self, step.call)
        survivors = undecided(keep)
        named: dict[tuple[int, int], list[str]] = {}
        for row, tokens in survivors.items():
            for token, claims in ballot.claims(step.request[row], step.prefix(row), tokens).items():
                named[row, token] = claims
        asked = {(step.request[row], claim) for (row, _), claims in named.items() for claim in claims}
        ballot.poll(asked)
        votes = []
        for (row, token), claims in named.items():
            request = step.request[row]
            best = max(claims, key=lambda claim: ballot.support[request, claim])
            step.claims.setdefault(row, {})[token] = best
            votes.append((row, token, log_odds(ballot.support[request, best])))
        step.call.trace.claims += len(votes)
        return votes


def undecided(keep: Tensor) -> dict[int, list[int]]:
    """Return the survivors of each row that has two or more; keep [R, V]."""
    kept = keep.nonzero()
    if len(kept) == len(keep):  # one a row
        return {}
    found: dict[int, list[int]] = {}
    for row, token in kept.tolist():
        found.setdefault(row, []).append(token)
    return {row: tokens for row, tokens in found.items() if len(tokens) > 1}


def log_odds(p: float) -> float:
    """Return how much a probability votes for, in nats, once clipped."""
    p = min(max(p, CLIP), 1 - CLIP)
    return math.log(p) - math.log1p(-p)


def voted(logits: Tensor, votes: Sequence[tuple[int, int, float]]) -> Tensor:
    """Return logits [R, V] with weighted votes added, each (row, token, nats) once."""
    if not votes:
        return logits
    size = logits.shape[-1]
    places = torch.tensor([row * size + token for row, token, _ in votes], device=logits.device)
    counted = logits.clone(memory_format=torch.contiguous_format)
    counted.view(-1).index_add_(0, places, logits.new_tensor([nats for *_, nats in votes]))
    return counted


@lru_cache(maxsize=4096)
def claim_about(name: str, template: str) -> str:
    """Return the claim that the picture holds an object."""
    return template.format(article=article(name), object=name)


@dataclass
class _Ballot:
    """What one call knows of its requests: how claims are found, and how far each is supported.

    Args:
        vote: the method.
        call: the call; its matcher is asked once for each request and claim.
        support: (request, claim) -> probability.
    """

    vote: Vote
    call: Call
    support: dict[tuple[int, str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        vote, call = self.vote, self.call
        self._matcher: Matcher = load_matcher(vote.matcher, model=call.model)
        self._pictures: list[list[Image]] = [[view.image for view in row] for row in call.requests()]
        texts = [row[0].text if row else "" for row in call.requests()]
        self._yes = [vote.claim or yes_no_claim(text) for text in texts]
        self._free = [
            yes is None or not (vote.claim or wants_nothing_else(text))
            for yes, text in zip(self._yes, texts, strict=True)
        ]
        ends = call.model.generation_config.eos_token_id
        self._ends = set(ends) if isinstance(ends, list) else {ends}
        vocabulary = Vocabulary.of(vote.objects)
        self._finder = finder_of(call.tokenizer, vocabulary, vote.by_word)
        self._yes_finder = finder_of(call.tokenizer, YES)
        self._names = frozenset().union(*vocabulary.spellings(vote.by_word).values()) if vote.prefetch else ()

    def claims(self, request: int, prefix: list[int], tokens: list[int]) -> dict[int, list[str]]:
        """Return the claims of each token that has any, none for requests without pictures or with an end."""
        if not self._pictures[request] or not self._ends.isdisjoint(prefix):
            return {}
        yes, found = self._yes[request], {}
        if self._free[request]:
            found = {
                token: [claim_about(name, self.vote.template) for name in sorted(names)]
                for token, names in self._finder.reachable(prefix, tokens).items()
            }
        if yes is not None:
            found |= {token: [yes] for token in self._yes_finder.reachable(prefix, tokens)}
        return found

    def poll(self, asked: set[tuple[int, str]]) -> None:
        """Ask the matcher for what is not known yet, all requests in one batch."""
        if self.vote.prefetch:
            free = {request for request, _ in asked if self._free[request]}
            asked = asked | {
                (request, claim_about(name, self.vote.template)) for request in free for name in self._names
            }
        missing = sorted(asked - self.support.keys())
        pairs = [(pair, image) for pair in missing for image in self._pictures[pair[0]]]
        if not pairs:
            return
        supports = self._matcher.support_pairs([image for _, image in pairs], [claim for (_, claim), _ in pairs])
        for (pair, _), p in zip(pairs, supports.tolist(), strict=True):
            self.support[pair] = max(p, self.support.get(pair, 0.0))
