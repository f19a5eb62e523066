"""One way of answering, as plain data: what it stands for, and what it is held against.

What a decoder stands for is its `role`, what it is held against its `baseline` and `control_of`. Names are for people:
nothing reads them. Needs no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from lvlm_guard.evals.spec.answers import Role
from lvlm_guard.evals.spec.items import YES_NO, Item, Kind

PLAIN: dict[str, Any] = {"do_sample": False, "num_beams": 1}
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}

REFERENCE = "greedy"  # what every row is compared with
PAPER: Final = "paper-agla"  # the preset under which methods are sampled, as in the paper


@dataclass(frozen=True)
class Decoder:
    name: str  # as in result rows
    about: str  # what it is, in a few words, for tables
    runs: tuple[Any, ...]  # `guard=` of each seed's calls, the first again after the last; (): no model is asked
    options: dict[str, Any] = field(default_factory=lambda: dict(PLAIN))  # further arguments of `generate()`
    seeds: int = 1  # how many runs; their counts are averaged. 1 for what is not random
    method: str | None = None  # the registered name of its method
    knobs: Mapping[str, Any] = field(default_factory=dict)  # of the method, as plain data
    role: Role = "method"  # what it stands for
    baseline: str | None = REFERENCE  # what it is held against beside the reference; None for the reference itself
    control_of: str | None = None  # None for no control, and for one of all that decode alike
    point: Mapping[str, Any] = field(default_factory=dict)  # its swept knobs
    prompt_suffix: str = ""  # what is said after the prompt and a blank
    derive: Literal["tilt", "olm"] | None = None  # how its answers follow from the reference's (`stats.verdict`)
    adapters: tuple[str, ...] = ()  # PEFT adapters that act while it answers, one for each of its seeds
    matcher: str = ""  # name of its matcher, where the run compares several
    matchers: tuple[str, ...] = ()  # names or folders of its matcher, one for each training; () for the model's own

    @property
    def sampled(self) -> bool:
        """Whether its answers are drawn."""
        return bool(self.options.get("do_sample"))

    def suits(self, kind: Kind) -> bool:
        """Return whether it has answers to tasks of a kind: what answers or asks for yes and no has none to others."""
        return kind in YES_NO or (bool(self.runs) and not self.prompt_suffix)

    def guard(self, seed: int) -> Any:
        """Return the `guard=` of a seed's calls."""
        return self.runs[seed % len(self.runs)]

    def worded(self, item: Item) -> Item:
        """Return an item as this decoder asks it."""
        if not self.prompt_suffix:
            return item
        suffix, talk = f" {self.prompt_suffix}", item.talk
        longer = None if talk is None else lambda: _longer(talk(), suffix)
        return replace(item, prompt=item.prompt + suffix, talk=longer)

    def describe(self) -> dict[str, Any]:
        """Return the decoder as JSON data, as it stands in `asked.json`."""
        told = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "runs"}
        told |= {"sampled": self.sampled, "yes_no_only": not self.suits("chair")}
        told |= {"knobs": dict(self.knobs), "point": dict(self.point)}
        return told | {"adapters": list(self.adapters), "matchers": list(self.matchers)}


def _longer(messages: list[dict[str, Any]], suffix: str) -> list[dict[str, Any]]:
    """Return chat messages whose last text says more."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        longer: Any = content + suffix
    else:
        last = max(i for i, part in enumerate(content) if part.get("type") == "text")
        longer = [part | {"text": part["text"] + suffix} if i == last else part for i, part in enumerate(content)]
    return [*messages[:-1], messages[-1] | {"content": longer}]
