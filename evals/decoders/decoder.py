"""One way of answering, as plain data and a function: what it stands for, and what it is held against.

What a decoder stands for is its `role`, what it is held against its `baseline` and `control_of`. Names are for people:
nothing reads them. Needs no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lvlm_guard.evals.spec.answers import Role
from lvlm_guard.evals.spec.items import YES_NO, Item, Kind

PLAIN: dict[str, Any] = {"do_sample": False, "num_beams": 1}
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}

REFERENCE = "greedy"  # what every row is compared with
PAPER = "paper-agla"  # the preset under which methods are sampled, as in the paper


@dataclass(frozen=True)
class Decoder:
    """One way of answering.

    Args:
        name: as in result rows.
        about: what it is, in a few words, for tables.
        guard: seed -> the `guard=` of a call: False, or a method. None: no model is asked (a matcher answers, or the
            answers are derived).
        options: further arguments of `generate()`.
        seeds: how many runs; their counts are averaged. 1 for what is not random.
        method: the registered name of its method, if it has one.
        knobs: the method's knobs, as plain data.
        role: what it stands for.
        baseline: the decoder that it is held against beside the reference; None for the reference itself.
        control_of: the one decoder that it is a control of; None for a control of all that decode as it does, and
            for what is no control.
        point: the swept knobs of this decoder.
        prompt_suffix: what is said after the prompt and a blank.
        derive: how its answers follow from the reference's scores, with nobody asked (`decoders.derived`).
        adapters: PEFT adapters that act while it answers, one for each of its seeds; () for none.
        matcher: name of its matcher among those that the run compares; "" where none are.
        matchers: registered names or folders of its matcher, one for each of its seeds where there are several
            trainings; () for the model's own.
    """

    name: str
    about: str
    guard: Callable[[int], Any] | None
    options: dict[str, Any] = field(default_factory=lambda: dict(PLAIN))
    seeds: int = 1
    method: str | None = None
    knobs: Mapping[str, Any] = field(default_factory=dict)
    role: Role = "method"
    baseline: str | None = REFERENCE
    control_of: str | None = None
    point: Mapping[str, Any] = field(default_factory=dict)
    prompt_suffix: str = ""
    derive: Literal["tilt", "olm"] | None = None
    adapters: tuple[str, ...] = ()
    matcher: str = ""
    matchers: tuple[str, ...] = ()

    @property
    def sampled(self) -> bool:
        """Whether its answers are drawn."""
        return bool(self.options.get("do_sample"))

    def suits(self, kind: Kind) -> bool:
        """Return whether it has answers to tasks of a kind: what answers or asks for yes and no has none to others."""
        return kind in YES_NO or (self.guard is not None and not self.prompt_suffix)

    def worded(self, item: Item) -> Item:
        """Return an item as this decoder asks it."""
        if not self.prompt_suffix:
            return item
        suffix, talk = f" {self.prompt_suffix}", item.talk
        return replace(item, prompt=item.prompt + suffix, talk=None if talk is None else lambda: _longer(talk, suffix))

    def describe(self) -> dict[str, Any]:
        """Return the decoder as JSON data, as it stands in `asked.json`."""
        told = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "guard"}
        told |= {"sampled": self.sampled, "yes_no_only": not self.suits("chair")}
        for name in ("knobs", "point"):
            told[name] = dict(told[name])
        return told | {"adapters": list(self.adapters), "matchers": list(self.matchers)}


def _longer(talk: Callable[[], list[dict[str, Any]]], suffix: str) -> list[dict[str, Any]]:
    """Return chat messages whose last text says more."""
    *before, last = talk()
    content = last["content"]
    if isinstance(content, str):
        return [*before, last | {"content": content + suffix}]
    at = max(i for i, part in enumerate(content) if part.get("type") == "text")
    longer = [part | {"text": part["text"] + suffix} if i == at else part for i, part in enumerate(content)]
    return [*before, last | {"content": longer}]
