"""Trainings of a few steps, for tests."""

from __future__ import annotations

from lvlm_guard.adapters.ranker.settings import RankerSettings
from lvlm_guard.adapters.training import dual_prompt, ranker
from lvlm_guard.adapters.training.recipe import Recipe

RANKER = ranker.Plan(settings=RankerSettings(width=16, heads=2, relations=2, prompts=2, fusion_layers=1, post_layers=1))
DUAL = dual_prompt.Plan(n_ctx=2, depth=2, coupling_rank=4)


def recipe(**changed: object) -> Recipe:
    """Six steps of eight."""
    return Recipe(**{"steps": 6, "batch": 8, "rate": 5e-3, "measure_every": 3, "save_every": 2} | changed)  # type: ignore[arg-type]
