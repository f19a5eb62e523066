"""From a name, a folder or a model's config to a matcher."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lvlm_guard.adapters import load_adapter
from lvlm_guard.adapters.loading import ADAPTERS, TINY
from lvlm_guard.adapters.matchers import place_for
from lvlm_guard.adapters.matchers.clip import ClipMatcher, DualPromptMatcher
from lvlm_guard.adapters.matchers.ranker import RankerMatcher
from lvlm_guard.adapters.ranker.ranker import Ranker
from lvlm_guard.adapters.retrieval.retriever import DualPromptRetriever
from lvlm_guard.errors import WeightsError
from lvlm_guard.matching import REGISTRY, load_matcher


def test_the_three_are_registered_by_name() -> None:
    kinds = {"clip": ClipMatcher, "dual-prompt": DualPromptMatcher, "ranker": RankerMatcher}
    for name, kind in kinds.items():
        assert REGISTRY.get(name) is kind


def test_a_folder_is_known_by_what_lies_in_it(dual_folder: Path, rank_folder: Path) -> None:
    dual, rank, clip = load_matcher(dual_folder), load_matcher(str(rank_folder)), load_matcher(TINY)
    assert type(dual) is DualPromptMatcher
    assert type(rank) is RankerMatcher
    assert type(clip) is ClipMatcher
    assert load_matcher(str(dual_folder)) is dual


def test_a_saved_matcher_has_the_version_it_had(dual_folder: Path, dual_matcher: DualPromptMatcher) -> None:
    assert DualPromptMatcher.from_pretrained(dual_folder).version == dual_matcher.version


@pytest.mark.parametrize("name", ["dual-prompt", "ranker"])
def test_a_name_alone_says_how_to_train_one(name: str) -> None:
    with pytest.raises(WeightsError, match=rf"lvlm-guard train {name} .*matcher=DIR"):
        load_matcher(name)


def test_a_models_config_says_which_adapter_is_meant(tmp_path: Path) -> None:
    def model(**told: str) -> SimpleNamespace:
        return SimpleNamespace(config=SimpleNamespace(lvlm_guard=told), name_or_path=str(tmp_path))

    assert place_for("ranker", model(ranker="owner/ranker")) == "owner/ranker"
    (tmp_path / "mine").mkdir()
    assert place_for("ranker", model(ranker="mine")) == str(tmp_path / "mine")
    assert place_for("dual-prompt", model(matcher="../blip")) == str(ADAPTERS / "dual-prompt")
    assert place_for("clip", None, "owner/clip") == "owner/clip"


def test_adapters_load_by_folder_and_say_what_is_missing(dual_folder: Path, rank_folder: Path, tmp_path: Path) -> None:
    assert isinstance(load_adapter(dual_folder), DualPromptRetriever)
    assert isinstance(load_adapter(str(rank_folder)), Ranker)
    with pytest.raises(WeightsError, match="no adapter folder"):
        load_adapter(tmp_path)
    with pytest.raises(WeightsError, match="owner/nothing"):
        load_adapter("owner/nothing")
