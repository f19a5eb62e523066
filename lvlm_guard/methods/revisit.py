"""ReVisiT: let the image token that agrees best with the next word have its say.

Source: Cho and Kim, "Revisit What You See: Revealing Visual Semantics in Vision Tokens to Guide LVLM Decoding", ACL
2026, arXiv:2506.09522; bscho333/ReVisiT at b382967 (Apache-2.0; written from the formulas). Of the prompt's image
positions the states h_c after some layers are kept. Within what the plausibility constraint on l keeps,

    p = softmax(l),  q_c = softmax(head(h_c)),  s = log p + log q_c*,  c* = argmin over c of divergence(p, q_c)

Where p and q agree, this is plain decoding at temperature 1/2. Differs from the release: the divergence is
Jensen-Shannon's, as the paper says (there the arguments of KL are swapped), and every state is read through the final
norm (there only the last layer's is). `revisit-official` (`evals/decoders/published.py`) has the release's two. In
both, rows choose for themselves, and the embeddings, which the release reads where the head is not tied to them, are
no candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lvlm_guard.engine import Call, Pass, Plausible, Single, Step, choice, cut, divergence, plausibility
from lvlm_guard.engine.steering import Decoder
from lvlm_guard.errors import KnobError


@dataclass(frozen=True)
class ReVisiT(Single, Plausible):
    """log p + log q of the best image token within the plausibility constraint; one forward, no second branch.

    Args:
        early: whose states are candidates: "last" (the last layer's, for LLaVA-1.5 in the release), "all" (every second
            layer's and the last, for Qwen2.5-VL), or counts of layers, 1 for the output of the first.
        beta: plausibility cut, 0 to 1; 1e-5 in the release.
    """

    paper: ClassVar[str] = "arXiv:2506.09522"
    cost: ClassVar[str] = "a head over the image tokens, of the plausible words, at undecided steps"
    early: Literal["last", "all"] | tuple[int, ...] = choice("last", "all", tuples="counts of layers, such as (16, 32)")
    beta: float = plausibility(1e-5)

    @staticmethod
    def apart(logits: Tensor, other: Tensor) -> Tensor:
        """Return how far two next-token distributions are apart, [...] in nats."""
        return divergence(logits, other)

    @staticmethod
    def normed(states: Tensor, layer: int, decoder: Decoder) -> Tensor:
        """Return the states after a layer as the head reads them."""
        normed: Tensor = decoder.norm(states)
        return normed

    def matched_temperature(self) -> float | None:
        """Return 1/2, which it comes to where the image token says what the model says."""
        return 0.5

    @classmethod
    def changes(cls) -> str:
        """Return "logits": it looks at states and changes none."""
        return "logits"

    def layers(self, call: Call) -> Sequence[int]:
        """Return the layers whose states are candidates, at least one."""
        depth = len(call.decoder)
        counts = {"last": [depth], "all": [*range(2, depth, 2), depth]}
        return [count - 1 for count in (counts[self.early] if isinstance(self.early, str) else self.early)]

    def check(self, call: Call) -> None:
        """Raise where the picture's tokens are not known, `KnobError` where there is no such layer."""
        _ = call.image_positions
        depth = len(call.decoder)
        if not self.early or not all(0 <= layer < depth for layer in self.layers(call)):
            raise KnobError(f"early is {self.early}, but this model has {depth} layers: give counts from 1 to {depth}.")

    @contextmanager
    def around(self, passed: Pass) -> Iterator[None]:
        """Keep the states of the image positions, as the head reads them, when the prompt is read."""
        decoder, layers, shown = passed.call.decoder, self.layers(passed.call), passed.call.image_positions
        kept: dict[int, list[Tensor]] = passed.call.memory.setdefault(self.name, {})
        fresh = {request: passed.request.index(request) for request in set(passed.request)}

        def see(index: int, given: Tensor) -> None:
            for request, row in fresh.items():
                states = passed.prompts(given)[row][shown[request].to(given.device)]
                kept.setdefault(request, []).append(self.normed(states, layers[index], decoder))

        if passed.from_the_start():
            kept.clear()
        with decoder.edited(layers if passed.done == 0 else [], see):
            yield

    def assemble(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        keep = step.plausible(self.beta)
        assembled, kept = step.logits.clone(), step.call.memory[self.name]
        for row in (keep.sum(-1) > 1).nonzero().flatten().tolist():
            states = [each for each in kept[step.request[row]] if len(each)]
            if states:
                words = keep[row].nonzero().flatten()
                p = step.logits[row, words].log_softmax(-1)
                read = torch.cat([step.call.decoder.words(each, words).to(p) for each in states]).log_softmax(-1)
                assembled[row, words] = p + read[self.apart(p[None], read).argmin()]
        return cut(assembled, step.logits, keep)
