"""Small trainings on the embedded world, with the embedded CLIP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from trainings import RANKER

from lvlm_guard.adapters.data import CaptionData, RankData
from lvlm_guard.adapters.data.jsonl import write_captions, write_ranks
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


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with captions.jsonl and ranks.jsonl, by brightness, of a few pictures of the world."""
    place = tmp_path_factory.mktemp("data")
    said = [*captions("train", 24).rows, *captions("val", 8).rows]
    valued = [*ranks("train", by="brightness", n=24).rows, *ranks("val", by="brightness", n=10).rows]
    for key in [*(row.image for row in said), *(row.image for row in valued)]:
        Pictures().load(key).save(place / saved(key))
    write_captions(place / "captions.jsonl", [replace(row, image=saved(row.image)) for row in said])
    write_ranks(place / "ranks.jsonl", [replace(row, image=saved(row.image)) for row in valued])
    return place


def saved(key: str) -> str:
    return key.replace("/", "-") + ".png"
