"""Vote: where the model is undecided, the matcher votes on what it is about to name.

Ours. Where the plausibility constraint (APC) leaves more than one token, the matcher is asked how well the picture
supports what each of them would name; a product of two experts within the plausible set:

    z(c) = l(c) + lambda * logit(p(claim(c)))    for survivors c with a claim, p clipped at .001
    z(c) = l(c)                                  for survivors without one

In free text a claim is an object of a vocabulary that a token starts or goes on; in answers to yes/no questions it is
the question, for the tokens that start "yes"; where a text asks for both, both. Other languages have no claims. An
object that the answer has named gets no vote for being named again (`again`), and a sentence may end behind a name for
a vote of its own (`ends`): most pictures show few things.

Related: DLC (arXiv:2506.21509) scores the running text by CLIP with each of the top tokens at every step; CLIP-guided
decoding (arXiv:2402.15300) ranks sentences; Woodpecker (arXiv:2310.16045) corrects finished answers. On yes/no
questions vote is about as good as its matcher, no better; what a matcher can't do is write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from lvlm_guard.engine import Call, Plausible, Step, cut, knob, limited, plausibility, weight
from lvlm_guard.matching import Vocabulary
from lvlm_guard.matching.views import matcher_of
from lvlm_guard.matching.vocabulary import TEMPLATE, Objects, check_objects, check_template
from lvlm_guard.matching.voting import Ballot, odds_of, undecided, voted


@dataclass(frozen=True)
class Vote(Plausible):
    """z = l + lambda * logit(p) for survivors with a claim, within the plausibility constraint.

    Args:
        lam: lambda, the weight of the log-odds, >= 0; 1 and beta .1 were chosen on the embedded world's validation.
        beta: plausibility cut, a share of the best token's probability, 0 to 1.
        again: the most that an object is believed, 0 to 1, once it is named: .5 is no vote, 1 a vote as before.
        ends: what the end of a sentence gets behind a name, in nats before lambda, >= 0. A prior, and no evidence: it
            makes answers shorter by itself. 1 is the most that cost no object on validation.
        objects: what is voted on in free text: None for COCO's 80, names (synonyms after commas), or a list's path.
        template: the claim about an object; {article} is its "a" or "an".
        by_word: claim the word itself ("is there a pigeon ...") instead of its category ("... a bird ...").
        prefetch: ask about the whole vocabulary in one batch at the first need, for matchers on GPUs.
        claim: what a "yes" would mean, for prompts whose question is not found.
        matcher: a registered name, a hub id or folder, a matcher, or None for the model's default.
    """

    paper: ClassVar[str] = "ours"
    cost: ClassVar[str] = "a matcher's text passes at undecided steps"
    asks_about_pictures: ClassVar[bool] = True
    lam: float = weight(1.0)
    beta: float = plausibility(0.1)
    again: float = limited(0.5, "a probability, 0 to 1; .5 is no vote, 1 any vote", lambda p: 0 <= p <= 1)
    ends: float = weight(1.0)
    objects: Objects = knob(None, check_objects)
    template: str = knob(TEMPLATE, check_template)
    by_word: bool = False
    prefetch: bool = False
    claim: str | None = None
    matcher: Any = None

    def check(self, call: Call) -> None:
        """Raise where a picture comes without a question, or the matcher can't be loaded or gives no probabilities."""
        if self.claim is None:
            call.require_text()
        matcher_of(call, self.matcher).require_support()

    def assemble(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        keep = step.plausible(self.beta)
        votes = self._votes(step, keep) if self.lam > 0 else []
        assembled = voted(step.logits, [(row, token, self.lam * odds) for row, token, odds in votes])
        return cut(assembled, step.logits, keep)

    def _votes(self, step: Step, keep: Tensor) -> list[tuple[int, int, float]]:
        """Return (row, token, nats); leaves the claims in the step."""
        ballot: Ballot | None = step.call.memory.get(self.name)
        if ballot is None:
            how = (self.by_word, self.template, self.claim, self.prefetch)
            ballot = step.call.memory[self.name] = Ballot(step.call, self.matcher, Vocabulary.of(self.objects), *how)
        told = step.call.trace.extra
        votes: list[tuple[int, int, float]] = []
        for row, choice in ballot.choices(step, undecided(keep)).items():
            request = step.request[row]
            found = odds_of(choice, ballot.support[request], self.again)
            claims = {token: ballot.claim(request, name) for token, (name, _) in found.items()}
            if claims:
                step.extra[row]["claims"] = claims
            votes += [(row, token, odds) for token, (_, odds) in found.items()]
            votes += [(row, token, self.ends) for token in choice.ends]
            told["claims"] = told.get("claims", 0) + len(claims)
        return votes
