"""Small trainings on the embedded world, with the embedded CLIP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from trainings import RANKER

from lvlm_guard.adapters.data import CaptionData, FactsData, RankData
from lvlm_guard.adapters.data.read import world_facts
from lvlm_guard.adapters.training import dual_prompt, ranker
from lvlm_guard.embedded.captioned import Pictures


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pairs() -> CaptionData:
    return some("captions", train=24, val=10).captions


def some(kind: str, **parts: int) -> FactsData:
    """Facts of the first pictures of splits."""
    given = [world_facts(kind, split, n) for split, n in parts.items()]
    return replace(given[0], rows=[one for each in given for one in each.facts], name=f"some {kind}")


@pytest.fixture(scope="session")
def caption_pictures(pairs: CaptionData) -> dual_prompt.Pictures:
    return dual_prompt.Pictures.read(pairs, "embedded")


@pytest.fixture(scope="session")
def values() -> RankData:
    rows = [*world_facts("count", "train", 60).ranks.rows, *world_facts("count", "val", 60).ranks.rows]
    kinds = {row.object for row in rows}
    return RankData(rows, Pictures(), "some counts", exhaustive=sorted(kinds)).teaching("skip")


@pytest.fixture(scope="session")
def ranked_pictures(values: RankData) -> ranker.Pictures:
    return ranker.Pictures.read(values, RANKER)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with captions.jsonl and ranks.jsonl, by brightness, of a few pictures of the world."""
    place = tmp_path_factory.mktemp("data")
    for name, data in (
        ("captions.jsonl", some("captions", train=24, val=8, test=8)),
        ("ranks.jsonl", some("brightness", train=24, val=10, test=10)),
    ):
        for one in data.facts:
            Pictures().load(one.image).save(place / saved(one.image))
        replace(data, rows=[replace(one, image=saved(one.image)) for one in data.facts]).write(place / name)
    return place


def saved(key: str) -> str:
    return key.replace("/", "-") + ".png"
