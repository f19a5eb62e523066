"""ICD: subtract what the model says under a disturbed instruction.

Source: Wang et al., "Mitigating Hallucinations in Large Vision-Language Models with Instruction Contrastive Decoding",
ACL Findings 2024, arXiv:2403.18715; p1k0pan/ICD at 2fa44c5 (no licence file; written from the formula):

    (1 + alpha) * l - alpha * l_disturbed    within the plausibility constraint on l

Differs from the release: the disturbance is written into the prompt of every family (there InstructBLIP's goes to the
Q-Former alone, LLaVA's replaces its system prompt, which the checkpoints on the hub do not have).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lvlm_guard.engine import Branch, Call, Contrast, choice, plausibility, replaced, weight

CONFUSED = "You are a confused objects detector to provide a fuzzy overview or impression of the image."


@dataclass(frozen=True)
class ICD(Contrast):
    """Two branches, (1 + alpha) * l - alpha * l_disturbed, then the plausibility cut on l.

    Args:
        alpha: contrast strength, >= 0; 1 in the release.
        beta: plausibility cut, 0 to 1; .1 in the release.
        disturbance: the instruction that is added; the release has five, each a run of its own.
        place: before the whole prompt ("system", as for LLaVA), or before or behind the question ("prefix", "suffix").
    """

    paper: ClassVar[str] = "arXiv:2403.18715"
    cost: ClassVar[str] = "a second branch at undecided steps"
    asks_about_pictures: ClassVar[bool] = True
    alpha: float = weight(1.0)
    beta: float = plausibility(0.1)
    disturbance: str = CONFUSED
    place: Literal["system", "prefix", "suffix"] = choice("system", "prefix", "suffix")

    def branches(self) -> tuple[Branch, ...]:
        return (Branch("disturbed", prompt=self._prompt),)

    def check(self, call: Call) -> None:
        """Raise where the question's place in a prompt is not known, see `disturbed`."""
        if self.place != "system":
            call.require_text()

    def _prompt(self, call: Call) -> dict[str, Any]:
        texts = [row[0].text if row else "" for row in call.requests()]
        return call.rewritten(lambda prompt, index: self.disturbed(prompt, texts[index]))

    def disturbed(self, prompt: str, question: str) -> str:
        """Return a prompt with the disturbance in its place; raises `UnsupportedCallError` where the prompt does not
        hold the question."""
        if not self.disturbance:
            return prompt
        if self.place == "system":
            return f"{self.disturbance} {prompt}"
        both = (self.disturbance, question) if self.place == "prefix" else (question, self.disturbance)
        return replaced(prompt, question, " ".join(both))
