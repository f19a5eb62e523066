"""DoLa: subtract what an early layer says, the one that disagrees most.

Source: Chuang et al., "DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models", ICLR 2024,
arXiv:2309.03883; voidism/DoLa at 805230e. With e_j the head over the output of layer j, without the final norm:

    s = lp - log_softmax(e_j)    within the plausibility constraint on lp,  j = argmax divergence(p, softmax e_j)

Differs from the release: the divergence is Jensen-Shannon's (there the arguments of KL are swapped and it is averaged
over the vocabulary), and each row chooses its own layer (there the batch does). `dola-official`
(`evals/decoders/published.py`) has the release's divergence, by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lvlm_guard.engine import Call, Plausible, Step, choice, cut, divergence, plausibility
from lvlm_guard.errors import KnobError


@dataclass(frozen=True)
class DoLa(Plausible):
    """lp - log_softmax(head(h_j)) within the plausibility constraint; one forward, no second branch.

    Args:
        candidates: "low" (every second layer of the first half, for long answers), "high" (of the second half, for
            short ones), or counts of layers below the state that is read, 0 for the embeddings.
        beta: plausibility cut, the release's relative_top, 0 to 1.
    """

    paper: ClassVar[str] = "arXiv:2309.03883"
    cost: ClassVar[str] = "a few more heads at undecided steps"
    candidates: Literal["low", "high"] | tuple[int, ...] = choice("low", "high", tuples="counts, such as (2, 4)")
    beta: float = plausibility(0.1)

    @staticmethod
    def apart(logits: Tensor, other: Tensor) -> Tensor:
        """Return how far two next-token distributions are apart, [...] in nats."""
        return divergence(logits, other)

    def states(self, depth: int, tied: bool) -> list[int]:
        """Return which states are read, as counts of layers below them.

        Args:
            depth: how many layers the model has.
            tied: whether its head is its embeddings, which then tell of the last token alone.

        Raises:
            KnobError: the model is not as deep.
        """
        half = 20 if depth > 40 else depth // 2
        if self.candidates == "low":
            found = list(range(2 if tied else 0, half, 2)) or [1]
        elif self.candidates == "high":
            found = list(range(depth - half, depth, 2))
        else:
            found = [int(each) for each in self.candidates]
        if not found or not all(0 <= each < depth for each in found):
            raise KnobError(
                f"candidates is {found}, but this model has {depth} layers: give counts from 0 to {depth - 1}."
            )
        return found

    def _states(self, call: Call) -> list[int]:
        tied = bool(getattr(call.model.config.get_text_config(decoder=True), "tie_word_embeddings", False))
        return self.states(len(call.decoder), tied)

    def layers(self, call: Call) -> Sequence[int]:
        return [state - 1 for state in self._states(call) if state]

    def assemble(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        keep = step.plausible(self.beta)
        if bool((keep.sum(-1) == 1).all()):
            return cut(step.logits, step.logits, keep)
        states = [step.hidden(state - 1) if state else _embedded(step) for state in self._states(step.call)]
        early = step.call.decoder.lens(torch.stack(states), norm=False).to(step.logits.dtype)  # [J, R, V]
        chosen = torch.stack([self.apart(step.logits, each) for each in early]).argmax(0)
        rows = torch.arange(len(chosen), device=chosen.device)
        contrasted = step.logits.log_softmax(-1) - early[chosen, rows].log_softmax(-1)
        return cut(contrasted, step.logits, keep)


def _embedded(step: Step) -> Tensor:
    """Return the embedding of each row's last token, [R, D]."""
    assert step.call.ids is not None
    last = [(step.prefix(row) or step.call.ids[0][request].tolist())[-1] for row, request in enumerate(step.request)]
    found: Tensor = step.call.model.get_input_embeddings()(torch.tensor(last, device=step.logits.device))
    return found
