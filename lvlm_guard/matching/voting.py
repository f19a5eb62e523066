"""What a call's matcher says of texts (`Poll`), and votes by it on what an answer is about to claim.

Which tokens claim something, and how much each claim weighs, is shared by the method `vote`, which asks a matcher
(`Ballot`), and its serving twin, whose requests carry the scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lvlm_guard.matching.asking import YES, wanted
from lvlm_guard.matching.claims import Choice, finder_of
from lvlm_guard.matching.loading import Spec, load_matcher
from lvlm_guard.matching.match import ABSTAIN
from lvlm_guard.matching.platt import log_odds
from lvlm_guard.matching.vocabulary import TEMPLATE, WORD, Vocabulary, claim_about

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lvlm_guard.engine.call import Call
    from lvlm_guard.engine.method import Step

QUESTION = ""
"""Stands among the objects for a yes/no question itself."""


def odds_of(choice: Choice, support: Mapping[str, float], again: float) -> dict[int, tuple[str, float]]:
    """Return what each token of a choice that claims something is about, and the log-odds of that, in nats.

    `support` is object -> probability that the picture holds it; an object that is named is believed `again` at most.
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
    """Finds what tokens would claim: objects of a vocabulary, and "yes" to the question; arguments as `ClaimFinder`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, by_word: bool = False) -> None:
        self._objects = finder_of(tokenizer, vocabulary, by_word)
        self._yes = finder_of(tokenizer, YES)

    def choice(self, prefix: Sequence[int], tokens: Sequence[int], objects: bool, yes: bool) -> Choice:
        """Return what tokens would do to an answer, where objects are voted on, the question (`QUESTION`), or both."""
        choice = self._objects.choice(prefix, tokens) if objects else Choice({})
        if not yes:
            return choice
        claimed = dict.fromkeys(self._yes.reachable(prefix, tokens), frozenset({QUESTION}))
        return replace(choice, reached={**choice.reached, **claimed})


class Poll:
    """A call's matcher and its answers. With several pictures a text holds as well as in the one that it fits best.

    `by_similarity` says whether texts are compared with pictures where the matcher can; else how probable they are.
    """

    def __init__(self, call: Call, spec: Spec, by_similarity: bool = False) -> None:
        self.matcher = load_matcher(spec, model=call.model)
        self.compares = by_similarity and self.matcher.compares
        self._pictures = [[view.image for view in row] for row in call.requests()]
        self._said: list[dict[str, float | None]] = [{} for _ in self._pictures]

    def ask(self, pairs: Iterable[tuple[int, str]]) -> None:
        """Ask what is not known yet of (request, text), in this order; nobody is asked about a text without words."""
        missing = [pair for pair in dict.fromkeys(pairs) if pair[1] not in self._said[pair[0]]]
        for request, text in missing:
            self._said[request][text] = None
        some = [pair for pair in missing if (pair[1].strip() if self.compares else WORD.search(pair[1]))]
        if self.compares:
            for request in dict.fromkeys(request for request, _ in some):
                texts = [text for of, text in some if of == request]
                best = self.matcher.similarity(self._pictures[request], texts).amax(0).tolist()
                self._said[request] |= dict(zip(texts, best, strict=True))
            return
        knows = self.matcher.knows([text for _, text in some])
        known = [pair for pair, told in zip(some, knows, strict=True) if told]
        asked = [(request, text, image) for request, text in known for image in self._pictures[request]]
        if asked:
            found = self.matcher.support_pairs([image for *_, image in asked], [text for _, text, _ in asked]).tolist()
            for (request, text, _), p in zip(asked, found, strict=True):
                self._said[request][text] = max(p, self._said[request][text] or 0.0)

    def __call__(self, request: int, text: str) -> float | None:
        """Return a similarity or a probability that was asked for; None where the matcher abstains."""
        return self._said[request][text]


class Ballot:
    """What one call knows of its requests: how claims are found, and how far each is supported.

    Args:
        call: whose matcher is asked once for each request and claim.
        matcher: see `load_matcher`.
        vocabulary, by_word: what free text is voted on; see `ClaimFinder`.
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
        """Return what the survivors of each undecided row would do; their claims are in `support` then.

        The matcher is asked for what `support` lacks, all requests in one batch.
        """
        made = {row: self._choice(step.request[row], step.prefix(row), tokens) for row, tokens in undecided.items()}
        asked = {(step.request[row], name) for row, c in made.items() for names in c.reached.values() for name in names}
        free = {request for request, _ in asked if self._wanted[request].objects}
        asked |= {(request, name) for request in free for name in self._names}
        missing = sorted(pair for pair in asked if pair[1] not in self.support[pair[0]])
        self._poll.ask([(request, self.claim(request, name)) for request, name in missing])
        for request, name in missing:
            p = self._poll(request, self.claim(request, name))
            self.support[request][name] = ABSTAIN if p is None else p
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
