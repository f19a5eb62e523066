"""A tiny random CLIP on disk, pictures read for it, and each preset after a step: once a session."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_clip
import torch
from preset_facts import some_facts

from lvlm_guard.adapters.presets import PRESETS
from lvlm_guard.adapters.training import dual_prompt
from lvlm_guard.adapters.training.recipe import Recipe
from lvlm_guard.adapters.training.retrieval import RetrievalTask
from lvlm_guard.adapters.training.trainer import learning


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    place = tmp_path_factory.mktemp("clip")
    for part in (tiny_clip.clip(), tiny_clip.tokenizer(), tiny_clip.image_processor()):
        part.save_pretrained(place)
    return str(place)


@pytest.fixture(scope="session")
def pictures(clip):
    return dual_prompt.Pictures.read(some_facts().captions, clip)


@pytest.fixture(scope="session")
def trained(clip, pictures):
    """Preset -> its task after a step, with the gradients of the next."""
    found = {}

    def one(name):
        if name not in found:
            torch.manual_seed(0)
            plan = replace(PRESETS[name].plan, clip=clip)
            plan = replace(plan, losses=replace(plan.losses, claims=1.0), tau=1.0)
            task = RetrievalTask(dual_prompt.build(plan, pictures), pictures, plan, Recipe(steps=2, batch=8, rate=1e-2))
            optimizer = torch.optim.AdamW(learning(task.model).values(), lr=1e-2)
            for step in range(2):
                optimizer.zero_grad()
                task.loss(task.model, task.batches.batch(step))[0].backward()
                if step == 0:
                    optimizer.step()
            found[name] = task
        return found[name]

    return one
