"""Votes on what an answer is about to claim: which tokens claim something, and how much each claim weighs.

Shared by the method `vote`, which asks a matcher (`Ballot`), and its serving twin, whose requests carry the scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lvlm_guard.matching.claims import Choice, finder_of
from lvlm_guard.matching.match import ABSTAIN
from lvlm_guard.matching.platt import log_odds
from lvlm_guard.matching.polling import Poll
from lvlm_guard.matching.questions import YES, wanted
from lvlm_guard.matching.vocabulary import TEMPLATE, Vocabulary, claim_about

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lvlm_guard.engine.call import Call
    from lvlm_guard.engine.method import Step
    from lvlm_guard.matching.loading import Spec

QUESTION = ""
"""Stands among the objects for a yes/no question itself."""


def odds_of(choice: Choice, support: Mapping[str, float], again: float) -> dict[int, tuple[str, float]]:
    """Return what each token that claims something is about, and the log-odds of that, in nats.

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


def undecided(keep: Tensor) -> dict[int, list[int]]:
    """Return the survivors of each row that has two or more; keep [R, V]."""
    kept = keep.nonzero()
    if len(kept) == len(keep):  # one a row
        return {}
    found: dict[int, list[int]] = {}
    for row, token in kept.tolist():
        found.setdefault(row, []).append(token)
    return {row: tokens for row, tokens in found.items() if len(tokens) > 1}


def voted(logits: Tensor, votes: Sequence[tuple[int, int, float]]) -> Tensor:
    """Return logits [R, V] with weighted votes added, each (row, token, nats) once."""
    if not votes:
        return logits
    size = logits.shape[-1]
    places = torch.tensor([row * size + token for row, token, _ in votes], device=logits.device)
    counted = logits.clone(memory_format=torch.contiguous_format)
    counted.view(-1).index_add_(0, places, logits.new_tensor([nats for *_, nats in votes]))
    return counted


class Naming:
    """Finds what tokens would claim: objects of a vocabulary, and "yes" to the question.

    Args:
        tokenizer: of the model that writes the answers.
        vocabulary: the objects.
        by_word: name the word itself ("pigeon") instead of its object ("bird").
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, by_word: bool = False) -> None:
        self._objects = finder_of(tokenizer, vocabulary, by_word)
        self._yes = finder_of(tokenizer, YES)

    def choice(self, prefix: Sequence[int], tokens: Sequence[int], objects: bool, yes: bool) -> Choice:
        """Return what tokens would do to an answer; those that start "yes" reach `QUESTION`.

        Args:
            prefix: the answer so far.
            tokens: what may come next.
            objects: whether objects are voted on.
            yes: whether the question is.
        """
        choice = self._objects.choice(prefix, tokens) if objects else Choice({})
        if not yes:
            return choice
        claimed = dict.fromkeys(self._yes.reachable(prefix, tokens), frozenset({QUESTION}))
        return replace(choice, reached={**choice.reached, **claimed})


class Ballot:
    """What one call knows of its requests: how claims are found, and how far each is supported.

    Args:
        call: its matcher is asked once for each request and claim; of several pictures the one that supports it best
            counts.
        matcher: see `load_matcher`.
        vocabulary: what free text is voted on.
        by_word: see `Naming`.
        template: the claim about an object.
        claim: what "yes" would claim, where the caller says so.
        prefetch: ask about the whole vocabulary at the first need.
    """

    def __init__(
        self,
        call: Call,
        matcher: Spec,
        vocabulary: Vocabulary,
        by_word: bool = False,
        template: str = TEMPLATE,
        claim: str | None = None,
        prefetch: bool = False,
    ) -> None:
        self._poll, self._ends, self._template = Poll(call, matcher), call.ends, template
        self._wanted = [wanted(row[0].text if row else "", claim) for row in call.requests()]
        self._seen = [bool(row) for row in call.requests()]
        self._naming = Naming(call.tokenizer, vocabulary, by_word)
        names = vocabulary.spellings(by_word).values() if prefetch else ()
        self._names = frozenset[str]().union(*names)
        self.support: list[dict[str, float]] = [{} for _ in self._seen]

    def choices(self, step: Step, undecided: Mapping[int, list[int]]) -> dict[int, Choice]:
        """Return what the survivors of each undecided row would do; their claims are in `support` then."""
        made = {row: self._choice(step.request[row], step.prefix(row), tokens) for row, tokens in undecided.items()}
        self._ask([(step.request[row], choice) for row, choice in made.items()])
        return made

    def _choice(self, request: int, prefix: list[int], tokens: list[int]) -> Choice:
        """Return what tokens would do, nothing for requests without pictures or with an end."""
        if not self._seen[request] or not self._ends.isdisjoint(prefix):
            return Choice({})
        of = self._wanted[request]
        return self._naming.choice(prefix, tokens, objects=of.objects, yes=of.yes is not None)

    def claim(self, request: int, name: str) -> str:
        """Return what is asked about an object, or `QUESTION`."""
        return (self._wanted[request].yes or "") if name == QUESTION else claim_about(name, self._template)

    def _ask(self, choices: Iterable[tuple[int, Choice]]) -> None:
        """Ask the matcher for what these need and `support` lacks, all requests in one batch."""
        asked = {(request, name) for request, c in choices for names in c.reached.values() for name in names}
        free = {request for request, _ in asked if self._wanted[request].objects}
        asked |= {(request, name) for request in free for name in self._names}
        missing = sorted(pair for pair in asked if pair[1] not in self.support[pair[0]])
        self._poll.ask([(request, self.claim(request, name)) for request, name in missing])
        for request, name in missing:
            p = self._poll(request, self.claim(request, name))
            self.support[request][name] = ABSTAIN if p is None else p
