"""MARINE: mix in what the model says once it is told which objects a detector finds in the picture.

Source: Zhao et al., "Mitigating Object Hallucination in Large Vision-Language Models via Image-Grounded Guidance", ICML
2025, arXiv:2402.08680; Linxi-ZHAO/MARINE at 13b91b9 (no licence file; written from the formula):

    s = log_softmax((1 - gamma) * lp + gamma * lp_told)

`lp_told` reads the same picture under a prompt that lists the objects before the question; where none is found, the
answer is plain, and the trace says so. Differs from the release: it lists what DETR (above .95) and RAM++ (above .68)
agree on, in one of four sentences at random, and its sentences for POPE forbid all else. Here a matcher says which of
some objects are there (`matcher="detector"` is nearest to the paper); what it abstains on is not listed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor

from lvlm_guard.engine import Branch, Call, Method, Step, knob, limited, replaced
from lvlm_guard.matching import Vocabulary, load_matcher
from lvlm_guard.matching.views import matcher_of
from lvlm_guard.matching.vocabulary import Objects, check_objects


@dataclass(frozen=True)
class MARINE(Method):
    """Two branches, (1 - gamma) * lp + gamma * lp_told.

    Args:
        gamma: share of the branch that is told, 0 to 1; .7 in the release.
        at: how probable a listed object must be, above 0 to 1; .95 is of DETR's scores, and seldom reached by BLIP's.
        objects: what is looked for: None for COCO's 80 categories, names, or the path of a list.
        template: what is put before the question; {objects} is the list.
        finds: a detector of the caller's own, picture -> names; then no matcher is asked.
        matcher: a registered name ("detector"), a hub id or folder, a matcher, or None for the model's default.
    """

    paper: ClassVar[str] = "arXiv:2402.08680"
    cost: ClassVar[str] = "a matcher over a list of objects, a second branch where any is found"
    asks_about_pictures: ClassVar[bool] = True
    gamma: float = limited(0.7, "0 to 1", lambda share: 0 <= share <= 1)
    at: float = limited(0.95, "above 0 to 1", lambda p: 0 < p <= 1)
    objects: Objects = knob(None, check_objects)
    template: str = limited(
        "This image contains {objects}. Based on this, ",
        "one with a place for the list, {objects}",
        lambda template: "{objects}" in template,
    )
    finds: Callable[[Image], Sequence[str]] | None = limited(None, "a function or None", callable)
    matcher: Any = None

    def branches(self) -> tuple[Branch, ...]:
        return (Branch("told", prompt=self._prompt),)

    def check(self, call: Call) -> None:
        """Raise where a question's place in its prompt is not known, or no matcher can be asked."""
        call.require_text()
        for prompt, row in zip(call.pictures.prompts(), call.requests(), strict=True):
            if row:
                replaced(prompt, row[0].text, "")
        if self.finds is None:
            matcher_of(call, self.matcher).require_support()

    def found(self, call: Call) -> list[list[str]]:
        """Return the objects of each request's pictures, by name, looked for once a call."""
        if self.name not in call.memory:
            matcher: Any = None if self.finds else load_matcher(self.matcher, model=call.model)
            listed, seen = Vocabulary.of(self.objects), []
            finds = self.finds or (lambda image: matcher.objects(image, self.at, listed))
            for row in call.requests():
                seen.append(list(dict.fromkeys(name for view in row for name in finds(view.image))))
            call.memory[self.name] = seen
            call.trace.note(f"objects found: {'; '.join(', '.join(names) or 'none' for names in seen)}")
        names: list[list[str]] = call.memory[self.name]
        return names

    def _prompt(self, call: Call) -> dict[str, Any]:
        found, rows = self.found(call), call.requests()

        def told(prompt: str, request: int) -> str:
            if not found[request]:
                return prompt
            question, listed = rows[request][0].text, ", ".join(found[request])
            return replaced(prompt, question, self.template.replace("{objects}", listed) + question)

        return call.rewritten(told)

    def decided(self, step: Step) -> Tensor:
        found = self.found(step.call) if self.gamma > 0 else []
        return torch.tensor([not (found and found[r]) for r in step.request], device=step.logits.device)

    def assemble(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        if branches is None or self.gamma == 0:
            return step.logits
        lp, told = step.logits.log_softmax(-1), branches[0].to(step.logits.dtype).log_softmax(-1)
        mixed = ((1 - self.gamma) * lp + self.gamma * told).log_softmax(-1)
        return torch.where(self.decided(step)[:, None], step.logits, mixed)
