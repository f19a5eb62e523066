"""Small trainings on the embedded world, with the embedded CLIP."""

from __future__ import annotations

import pytest
import torch
from trainings import RANKER

from lvlm_guard.adapters.data import CaptionData, RankData
from lvlm_guard.adapters.training import dual_prompt, ranker
from lvlm_guard.adapters.world import captions, ranks
from lvlm_guard.adapters.world.pictures import Pictures


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pairs() -> CaptionData:
    rows = [*captions("train", 24).rows, *captions("val", 10).rows]
    return CaptionData(rows, Pictures(), "some captions")


@pytest.fixture(scope="session")
def caption_pictures(pairs: CaptionData) -> dual_prompt.Pictures:
    return dual_prompt.Pictures.read(pairs, "embedded")


@pytest.fixture(scope="session")
def values() -> RankData:
    rows = [*ranks("train", n=60).rows, *ranks("val", n=60).rows]
    kinds = {row.object for row in rows}
    return RankData(rows, Pictures(), "some counts", exhaustive=sorted(kinds)).teaching("skip")


@pytest.fixture(scope="session")
def ranked_pictures(values: RankData) -> ranker.Pictures:
    return ranker.Pictures.read(values, RANKER)
