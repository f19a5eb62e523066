"""The questions of a soak: every name of a server, several knobs, captions and yes/no, and their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lvlm_guard.bench.measure import Workload
from soaking.asking import Arm, png
from soaking.endpoint import Chat
from soaking.reference import Expected

KNOBS: Mapping[str, Sequence[Mapping[str, float]]] = {
    "agla": ({}, {"alpha": 1.0}, {"alpha": 4.0, "beta": 0.1}, {"alpha": 0.0}),
    "vote": ({}, {"lam": 4.0}, {"lam": 0.3, "beta": 0.02}, {"lam": 0.0}),
    "vcd": ({}, {"alpha": 0.5}),
    "apc": ({}, {"beta": 0.1}),
}
"""Knobs that are asked for in turn."""

SHORT = 5
"""Tokens of every third caption, which is cut there."""


@dataclass
class Case:
    """A question.

    Args:
        chat: it.
        image: its picture.
        expected: the answer; None until one is known.
    """

    chat: Chat
    image: Image.Image
    expected: Expected | None

    def anew(self, number: int) -> Chat:
        """Return the question with another file of the same pixels: a mask not remembered, the same answer."""
        noted = PngInfo()
        noted.add_text("number", str(number))
        return Chat(**{**vars(self.chat), "picture": png(self.image, noted)})


def pool(
    workloads: Sequence[Workload],
    arms: Sequence[Arm],
    size: int,
    answer: Callable[[Image.Image, Chat], Expected | None] | None,
    tick: Callable[[int], object] = lambda count: None,
) -> list[Case]:
    """Return questions of all workloads and arms in turn.

    Args:
        workloads: of one request a call.
        arms: names to ask.
        size: of the pool.
        answer: gives what has to be said, None where that can't be told, which leaves the question out; None: the
            server's first answer is what it has to say again.
        tick: told of each question made.
    """
    cases: list[Case] = []
    number = 0
    while len(cases) < size:
        workload, arm = workloads[number % len(workloads)], arms[number // len(workloads) % len(arms)]
        turn = number // (len(workloads) * len(arms))
        (image,), (prompt,) = workload.pictures(number), workload.prompts(number)
        knobs = KNOBS[arm.guard][turn % len(KNOBS[arm.guard])] if arm.guard else {}
        tokens = SHORT if workload.task == "caption" and turn % 3 == 2 else workload.new_tokens
        chat = Chat(arm.name, arm.guard, prompt, png(image), tokens, knobs, ids=True)
        expected = None if answer is None else answer(image, chat)
        if answer is None or expected is not None:
            cases.append(Case(chat, image, expected))
            tick(1)
        number += 1
    return cases
