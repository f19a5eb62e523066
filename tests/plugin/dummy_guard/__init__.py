"""What another package has to write to bring a method and a matcher: this file and two entry points."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from lvlm_guard.engine import Call, Method, Step
from lvlm_guard.matching import Match, Matcher


@dataclass(frozen=True)
class Loudest(Method):
    """Always say one token."""

    name: ClassVar[str] = "loudest"
    token: int = 70

    def decided(self, step: Step) -> Tensor:
        return torch.ones(len(step.logits), dtype=torch.bool)

    def assemble(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        for row, request in enumerate(step.request):
            step.extra[row]["loudness"] = {"row": request, "before": len(step.prefix(row))}
        step.call.trace.extra["steps_seen"] = step.call.trace.extra.get("steps_seen", 0) + 1
        return step.logits.index_fill(1, torch.tensor([self.token]), 1e3)


class Lengths:
    """A check of answers, for `verify=`."""

    def bound(self, call: Call, method: Method) -> Callable[[int, str], dict[str, list[int]]]:
        return lambda request, text: {"lengths": [request, len(text)]}


class Everything(Matcher):
    """Finds everything relevant."""

    @property
    def version(self) -> str:
        return "everything-1"

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Match]:
        return [Match(torch.ones(8, 8), 0.5) for _ in images]
