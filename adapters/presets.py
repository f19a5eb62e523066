"""Published ways to adapt CLIP as configuration: which prompts, which losses, how fast, and what is not exact.

They lie in `presets.toml`, a few lines each; `lvlm-guard train presets` lists them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lvlm_guard.adapters.losses import LossStack
from lvlm_guard.adapters.training.dual_prompt import Plan
from lvlm_guard.adapters.training.recipe import Optimizer
from lvlm_guard.errors import UnknownNameError, did_you_mean


@dataclass(frozen=True)
class Preset:
    """A work as configuration: its title, its identifier on arXiv, and how it is trained.

    Args:
        row: its number in the project's list of works; None for a baseline.
        piece: what of the pieces of specs/prompt_methods.md it is made of.
        lacks: what of the work is not there; empty where it is exact.
        plan: what is trained.
    """

    name: str
    paper: str
    identifier: str
    row: int | None
    piece: str
    lacks: str
    plan: Plan = field(repr=False)
    optimizer: Optimizer = "sgd"
    rate: float = 3.5e-3
    epochs: int = 5

    @property
    def exact(self) -> bool:
        """Whether nothing of the work is lacking."""
        return not self.lacks

    @classmethod
    def read(cls, name: str, told: Mapping[str, Any]) -> Preset:
        """Return a preset from its table in the file."""
        own = {one.name: told[one.name] for one in fields(cls) if one.name in told}
        rest = {key: value for key, value in told.items() if key not in own}
        lacks = own.get("lacks", "")
        return cls(**{"name": name, "row": None, **own, "lacks": lacks, "plan": _plan(rest, work=name, lacks=lacks)})

    def to_dict(self) -> dict[str, Any]:
        """Return the preset as JSON data, its plan left out."""
        return {name: value for name, value in asdict(self).items() if name != "plan"} | {"exact": self.exact}


def _plan(told: Mapping[str, Any], **named: str) -> Plan:
    losses = LossStack(**{"hard_negative": 0.0, "alpha": 0.0, **told.get("losses", {})})
    first = _plan(told["first"]) if "first" in told else None
    return Plan(**{**told, **named, "losses": losses, "first": first})


PRESETS: Mapping[str, Preset] = {
    name: Preset.read(name, told)
    for name, told in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")).items()
}
"""By name, the simplest first. A work that is not here needs a piece that is not built yet."""

BASELINES = ("coop", "maple")
"""What a comparison trains beside."""


def preset(name: str) -> Preset:
    """Return a preset by name; raises `UnknownNameError`."""
    if name not in PRESETS:
        told = f"{did_you_mean(name, PRESETS)}Known: {', '.join(PRESETS)}."
        raise UnknownNameError(f"No preset is called {name!r}. {told}")
    return PRESETS[name]
