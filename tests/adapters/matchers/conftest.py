"""Matchers on the embedded CLIP: as it is, with untrained prompts, and with an untrained ranker; all calibrated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from trainings import RANKER

from lvlm_guard.adapters.data.read import world_facts
from lvlm_guard.adapters.matchers.clip import ClipMatcher, DualPromptMatcher
from lvlm_guard.adapters.matchers.ranker import RankerMatcher
from lvlm_guard.adapters.prompts import dual_prompt
from lvlm_guard.adapters.ranker.ranker import Ranker
from lvlm_guard.adapters.retrieval.folder import make, parts, untuned
from lvlm_guard.adapters.training import ranker
from lvlm_guard.embedded.captioned import scene

CALIBRATION = (9.0, -2.5)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    return [Image.fromarray(scene("captions", "test", k).image) for k in range(3)]


@pytest.fixture(scope="session")
def clip_matcher() -> ClipMatcher:
    return ClipMatcher(untuned(calibration=CALIBRATION))


@pytest.fixture(scope="session")
def dual_matcher() -> DualPromptMatcher:
    model, inputs = parts()
    torch.manual_seed(0)
    config = dual_prompt(inputs.tokenizer, n_ctx=3, depth=2, coupling_rank=4)
    return DualPromptMatcher(
        make(model, inputs, config=config, strength=0.0, weighting="none", calibration=CALIBRATION)
    )


@pytest.fixture(scope="session")
def plain_ranker() -> Callable[..., Ranker]:
    def made(**changed: object) -> Ranker:
        torch.manual_seed(0)
        built = ranker.build(RANKER, world_facts("count", "val", 20).ranks)
        built.model.eval()
        built.card = replace(built.card, **{"calibration": (0.2, 1.5)} | changed)  # type: ignore[arg-type]
        return built

    return made


@pytest.fixture(scope="session")
def rank_matcher(plain_ranker: Callable[..., Ranker]) -> RankerMatcher:
    return RankerMatcher(plain_ranker())


@pytest.fixture(scope="session")
def dual_folder(dual_matcher: DualPromptMatcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dual_matcher.retriever.save_pretrained(tmp_path_factory.mktemp("dual")).parent


@pytest.fixture(scope="session")
def rank_folder(plain_ranker: Callable[..., Ranker], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_ranker().save_pretrained(tmp_path_factory.mktemp("ranker")).parent
