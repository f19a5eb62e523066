"""Published ways to adapt CLIP as configuration: which prompts, which losses, how fast, and what is not exact.

All learn from pairs of pictures and captions, where most of the works learn classes of a picture from its label: the
captions of a batch stand for the classes. That is true of each, and not said again in `lacks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lvlm_guard.adapters.losses import LossStack
from lvlm_guard.adapters.training.dual_prompt import Plan
from lvlm_guard.adapters.training.recipe import Optimizer
from lvlm_guard.errors import UnknownNameError, did_you_mean


@dataclass(frozen=True)
class Preset:
    """A work as configuration.

    Args:
        name: of the preset.
        paper: its title.
        identifier: on arXiv.
        row: its number in the project's list of works; None for a baseline.
        piece: what of the pieces of specs/prompt_methods.md it is made of.
        lacks: what of the work is not there; empty where it is exact.
        plan: what is trained.
        optimizer, rate, epochs: the work's.
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

    def to_dict(self) -> dict[str, Any]:
        """Return the preset as JSON data, its plan left out."""
        told = {name: value for name, value in asdict(self).items() if name != "plan"}
        return told | {"exact": self.exact}


ALONE = LossStack(hard_negative=0.0, alpha=0.0)
"""CLIP's contrastive loss and nothing else."""

PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "coop",
            "Learning to Prompt for Vision-Language Models",
            "2109.01134",
            None,
            "P1, L0",
            "",
            Plan(prompts="coop", losses=ALONE),
            rate=2e-3,
            epochs=50,
        ),
        Preset(
            "maple",
            "MaPLe: Multi-modal Prompt Learning",
            "2210.03117",
            11,
            "P2, P3, L0",
            "",
            Plan(prompts="maple", losses=ALONE),
        ),
        Preset(
            "promptsrc",
            "Self-regulating Prompts: Foundational Model Adaptation without Forgetting",
            "2307.06948",
            58,
            "P2, L0, L2, L3, L7",
            "texts are held to the frozen feature of their own caption, not to the mean over 60 templates of a class",
            Plan(
                prompts="independent",
                losses=LossStack(
                    hard_negative=0.0, alpha=0.0, anchoring_text=25.0, anchoring_image=10.0, agreement=1.0
                ),
            ),
            rate=2.5e-3,
            epochs=20,
        ),
        Preset(
            "coprompt",
            "Consistency-guided Prompt Learning for Vision-Language Models",
            "2306.01195",
            41,
            "P2, P3, L0, L1",
            "no feature adapters (P24), and the teacher sees the same picture and caption, not an augmented one",
            Plan(prompts="maple", losses=LossStack(hard_negative=0.0, alpha=0.0, consistency=8.0)),
            epochs=8,
        ),
        Preset(
            "dcar",
            "DCAR: dual prompts for fine-grained image-text retrieval (no method code was published)",
            "2508.04028",
            35,
            "P2, P3, L0, D3",
            "no category block, which won nothing; the word weights of its loss are off unless --lambda asks for them",
            Plan(),
            optimizer="adamw",
            rate=1e-3,
            epochs=10,
        ),
    )
}
"""By name, the simplest first. A work that is not here needs a piece that is not built yet."""

BASELINES = ("coop", "maple")
"""What a comparison trains beside."""


def preset(name: str) -> Preset:
    """Return a preset by name; raises `UnknownNameError`."""
    if name not in PRESETS:
        raise UnknownNameError(
            f"No preset is called {name!r}. {did_you_mean(name, PRESETS)}Known: {', '.join(PRESETS)}."
        )
    return PRESETS[name]
