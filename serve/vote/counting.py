"""One step of `vote` over a batch: which rows are undecided, what their survivors name, and the votes.

The same rule as `lvlm_guard.methods.Vote` (by `lvlm_guard.matching.voting`), with the scores given by each request
instead of asked from a matcher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lvlm_guard.engine.assembly import cut, plausible
from lvlm_guard.matching.voting import QUESTION, Naming, undecided, voted
from lvlm_guard.serve.assembling import assemble
from lvlm_guard.serve.overruled import preferred_others

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lvlm_guard.matching import Vocabulary
    from lvlm_guard.serve.vote.ballot import Ballot

Prefixes = Callable[[Sequence[int]], Sequence[Sequence[int]]]
"""Rows -> all tokens of each row's answer so far: what it has named is read from them."""

Seen = Callable[[Sequence[int], Tensor | None], None]
"""Told the rows that were assembled, and where the plain logits prefer another token (bool; None for nowhere)."""


class Counting:
    """Votes on the rows of a step.

    Args:
        tokenizer: of the model that writes the answers.
        vocabulary: what free text is voted on.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> None:
        self._naming = Naming(tokenizer, vocabulary)

    def __call__(
        self, logits: Tensor, ballots: Mapping[int, Ballot], prefixes: Prefixes, seen: Seen = lambda rows, flags: None
    ) -> Tensor:
        """Return the logits with the guarded rows assembled, in place.

        Tokens at -inf (forbidden by a grammar, a list of allowed ids) are never among the survivors and stay
        forbidden. A row with nothing allowed is left as it is.

        Args:
            logits: [R, V], float32.
            ballots: row -> ballot, for guarded rows alone.
            prefixes: gives answers so far; called with undecided rows only.
            seen: called after each time that rows were assembled.

        Raises:
            LogitsError: a guarded row holds NaN or +inf.
        """

        def assembled(rows: list[int], index: Any) -> Tensor:
            plain = logits[index]
            betas = [ballots[row].beta for row in rows]
            keep = plausible(plain, betas[0] if len(set(betas)) == 1 else betas)
            survivors = {i: tokens for i, tokens in undecided(keep).items() if ballots[rows[i]].lam > 0}
            votes: list[tuple[int, int, float]] = []
            if survivors:
                answers = prefixes([rows[i] for i in survivors])
                for (i, tokens), answer in zip(survivors.items(), answers, strict=True):
                    ballot = ballots[rows[i]]
                    choice = self._naming.choice(answer, tokens, ballot.objects, QUESTION in ballot.support)
                    votes += [(i, *vote) for vote in ballot.votes(choice)]
            made = cut(voted(plain, votes), plain, keep)
            seen(rows, preferred_others(made, plain) if votes else None)
            return made

        if ballots:
            assemble(logits, sorted(ballots), assembled)
        return logits
