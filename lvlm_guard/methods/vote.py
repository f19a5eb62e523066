"""Vote: where the model is undecided, the matcher votes on what it is about to name.

Ours. A matcher can say how well the picture supports each thing that the model could name next; it is
asked where the plausibility constraint (APC) leaves more than one token, and only there:

    z(c) = l(c) + lambda * logit(p(claim(c)))    for survivors c with a claim, p clipped at .001
    z(c) = l(c)                                  for survivors without one

A product of two experts within the plausible set: no second branch, no second cache, no gradient. In
captions and other free text a claim is an object of a vocabulary that a token starts or goes on ("is
there a dog in the image?"); in answers to yes/no questions it is the question, for the tokens that
start "yes"; where a text asks for more beside such a question, both. Other languages have no claims, so no vote.

Where only what has been named already is supported, such votes have it named again. So an object that the
answer has named gets no vote for that (`again`), and a sentence may end behind a name for a vote of its own
(`ends`): to name something is to claim one of many things, of which most pictures show few.

Related: DLC (arXiv:2506.21509) scores the running text by CLIP with each of the top tokens at every
step; CLIP-guided decoding (arXiv:2402.15300) ranks sentences; Woodpecker (arXiv:2310.16045) corrects
finished answers. Measured honestly beside the matcher alone: on yes/no questions vote is about as good
as its matcher, no better; what a matcher can't do is write.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lvlm_guard.engine.assembly import check_alpha, check_beta, cut
from lvlm_guard.engine.method import Method, Step
from lvlm_guard.errors import KnobError
from lvlm_guard.matching import Vocabulary, load_matcher
from lvlm_guard.matching.claims import Choice, finder_of
from lvlm_guard.matching.questions import YES, wants_nothing_else, yes_no_claim
from lvlm_guard.matching.views import matcher_of
from lvlm_guard.matching.vocabulary import Objects, article

if TYPE_CHECKING:
    from PIL.Image import Image

    from lvlm_guard.engine.call import Call
    from lvlm_guard.matching import Matcher

QUESTION = ""
"""Stands among the objects for a yes/no question itself."""

CLIP = 1e-3
"""Probabilities are clipped to [CLIP, 1 - CLIP], so that one vote weighs 6.9 nats at most."""


@dataclass(frozen=True)
class Vote(Method):
    """z = l + lambda * logit(p) for survivors with a claim, within the plausibility constraint.

    Args:
        lam: lambda, the weight of the matcher's log-odds, >= 0; 1 and beta .1 were chosen on the embedded
            world's validation split.
        beta: plausibility cut, a share of the best token's probability, 0 to 1.
        again: the most that an object is believed, 0 to 1, once the answer has named it: at .5 it gets no vote, at
            1 it is voted for as before, below .5 it is voted against.
        ends: what the end of a sentence gets behind the name of an object, in nats before lambda, >= 0. A prior, and no
            evidence: it makes answers shorter by itself. 1 is the most that cost no object on the validation split.
        objects: what may be voted on in free text: None for COCO's 80 categories with synonyms, names (each
            with synonyms after commas), or the path of a list.
        template: the claim about an object; {article} is its "a" or "an".
        by_word: claim the word itself ("is there a pigeon ...") instead of its category ("... a bird ...").
        prefetch: ask about the whole vocabulary in one batch at the first need, instead of only about what a
            step could name; for matchers whose batches cost little more than a single text (GPUs).
        claim: what a "yes" would mean, for prompts whose question is not found.
        matcher: a registered name, a hub id or folder, a matcher, or None for the model's default.

    With several pictures in a prompt, a claim holds as well as in the picture that supports it best.

    Raises:
        KnobError: a knob is out of range, or the objects can't be read.
    """

    name: ClassVar[str] = "vote"
    paper: ClassVar[str] = "ours"
    cost: ClassVar[str] = "a matcher's text passes at undecided steps"
    asks_about_pictures: ClassVar[bool] = True
    lam: float = 1.0
    beta: float = 0.1
    again: float = 0.5
    ends: float = 1.0
    objects: Objects = None
    template: str = "is there {article} {object} in the image?"
    by_word: bool = False
    prefetch: bool = False
    claim: str | None = None
    matcher: Any = None

    def __post_init__(self) -> None:
        check_alpha(self.lam, "lam (lambda)")
        check_alpha(self.ends, "ends")
        check_beta(self.beta)
        if not 0 <= self.again <= 1:
            raise KnobError(f"again is {self.again!r}: give a probability, 0 to 1; .5 is no vote, 1 any vote.")
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

    def check(self, call: Call) -> None:
        """Raise where a call can't be voted on.

        Raises:
            TextError: a picture comes without a question, and the claim is not given.
            WeightsError: the matcher can't be loaded.
            UnsupportedCallError: the matcher gives no probabilities.
        """
        if self.claim is None:
            call.require_text()
        matcher_of(call, self.matcher).require_support()

    def decided(self, step: Step) -> Tensor:
        """Where one token is plausible, no vote can change it."""
        return step.plausible(self.beta).sum(-1) == 1

    def uncut(self) -> Vote:
        """Return the method with beta 0."""
        return replace(self, beta=0.0)

    def assemble(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        """Return the logits with the matcher's votes added, within the constraint."""
        keep = step.plausible(self.beta)
        votes = self._votes(step, keep) if self.lam > 0 else []
        assembled = voted(step.logits, [(row, token, self.lam * odds) for row, token, odds in votes])
        return cut(assembled, step.logits, keep)

    def _votes(self, step: Step, keep: Tensor) -> list[tuple[int, int, float]]:
        """Return (row, token, nats); leaves the claims in the step."""
        ballot: _Ballot | None = step.call.memory.get("vote")
        if ballot is None:
            ballot = step.call.memory["vote"] = _Ballot(self, step.call)
        choices = {
            row: (step.request[row], ballot.choice(step.request[row], step.prefix(row), tokens))
            for row, tokens in undecided(keep).items()
        }
        ballot.poll(
            {(request, name) for request, c in choices.values() for names in c.reached.values() for name in names}
        )
        votes: list[tuple[int, int, float]] = []
        for row, (request, choice) in choices.items():
            for token, (name, odds) in odds_of(choice, ballot.support[request], self.again).items():
                step.claims.setdefault(row, {})[token] = ballot.claim(request, name)
                votes.append((row, token, odds))
            votes += [(row, token, self.ends) for token in choice.ends]
        step.call.trace.claims += sum(len(choice.reached) for _, choice in choices.values())
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


def odds_of(choice: Choice, support: Mapping[str, float], again: float) -> dict[int, tuple[str, float]]:
    """Return what each token that names something is about, and the log-odds of that, in nats.

    Args:
        choice: what the survivors of a step would do.
        support: object -> probability that the picture holds it.
        again: the most that an object is believed once it is named.
    """
    votes = {}
    for token, names in choice.reached.items():
        believed = {name: min(support[name], again if name in choice.named else 1.0) for name in sorted(names)}
        best = max(believed, key=believed.__getitem__)
        votes[token] = best, log_odds(believed[best])
    return votes


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
        support: of each request, object, or `QUESTION`, -> probability.
    """

    vote: Vote
    call: Call
    support: list[dict[str, float]] = field(init=False)

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
        self._finder = finder_of(call.tokenizer, Vocabulary.of(vote.objects), vote.by_word)
        self._yes_finder = finder_of(call.tokenizer, YES)
        names = Vocabulary.of(vote.objects).spellings(vote.by_word).values()
        self._names = frozenset().union(*names) if vote.prefetch else frozenset()
        self.support = [{} for _ in self._pictures]

    def choice(self, request: int, prefix: list[int], tokens: list[int]) -> Choice:
        """Return what tokens would do, nothing for requests without pictures or with an end."""
        if not self._pictures[request] or not self._ends.isdisjoint(prefix):
            return Choice({})
        choice = self._finder.choice(prefix, tokens) if self._free[request] else Choice({})
        if self._yes[request] is None:
            return choice
        yes = dict.fromkeys(self._yes_finder.reachable(prefix, tokens), frozenset({QUESTION}))
        return replace(choice, reached={**choice.reached, **yes})

    def claim(self, request: int, name: str) -> str:
        """Return what is asked about an object, or `QUESTION`."""
        return (self._yes[request] or "") if name == QUESTION else claim_about(name, self.vote.template)

    def poll(self, asked: set[tuple[int, str]]) -> None:
        """Ask the matcher for what is not known yet, all requests in one batch."""
        if self.vote.prefetch:
            free = {request for request, _ in asked if self._free[request]}
            asked = asked | {(request, name) for request in free for name in self._names}
        missing = sorted(pair for pair in asked if pair[1] not in self.support[pair[0]])
        pairs = [(request, name, image) for request, name in missing for image in self._pictures[request]]
        if not pairs:
            return
        claims = [self.claim(request, name) for request, name, _ in pairs]
        supports = self._matcher.support_pairs([image for *_, image in pairs], claims)
        for (request, name, _), p in zip(pairs, supports.tolist(), strict=True):
            known = self.support[request]
            known[name] = max(p, known.get(name, 0.0))
