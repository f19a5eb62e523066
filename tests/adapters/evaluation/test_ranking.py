"""Lists, the baselines of ranking and their figures, against what must come out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from lvlm_guard.adapters.data import RankData, RankRow
from lvlm_guard.adapters.errors import DataError
from lvlm_guard.adapters.evaluation.ranking import Lists, counted, linear_probe, rows_of, zero_shot
from lvlm_guard.embedded.captioned import Pictures


def data(n: int, names: Sequence[str] = ("dog",), offset: int = 0) -> RankData:
    rows = [
        RankRow(f"{k + offset}", name, float((k + shift) % 4)) for k in range(n) for shift, name in enumerate(names)
    ]
    return RankData(rows, Pictures(), "numbers")


def test_most_of_the_pictures_without_an_object_are_left_out_of_its_list() -> None:
    rows = [RankRow(f"{k}", "dog" if k < 20 else "cat", float(1 + k % 3)) for k in range(200)]
    lists = Lists.of(RankData(rows, Pictures(), "numbers", exhaustive=("dog", "cat")))
    assert len(lists.keys["dog"]) == 25
    assert int((lists.values["dog"] == 0).sum()) == 5
    again = Lists.of(RankData(rows, Pictures(), "numbers", exhaustive=("dog", "cat")))
    assert again.keys == lists.keys


def test_too_few_pictures_of_everything_is_refused() -> None:
    with pytest.raises(DataError, match="no object has 8 pictures"):
        Lists.of(data(6))


def test_pictures_that_are_drawn_twice_count_twice() -> None:
    lists = Lists.of(data(12), zeros=0.9)
    assert lists.picked({"1": 2, "3": 1})["dog"].tolist() == [1, 1, 3]


def test_a_linear_probe_finds_a_value_that_lies_on_a_line_and_nothing_in_noise() -> None:
    train, held, test = (Lists.of(data(80, offset=at), zeros=0.9) for at in (0, 1000, 2000))
    noise = {str(k): torch.randn(6, generator=torch.Generator().manual_seed(k)) for k in range(3000)}

    def lined(keys: Sequence[str]) -> Tensor:
        return torch.stack([noise[key] * 0.05 + (int(key) % 4) * torch.arange(6.0) for key in keys])

    def noisy(keys: Sequence[str]) -> Tensor:
        return torch.stack([noise[key] for key in keys])

    assert test.figures(linear_probe(test, train, held, lined)).srcc > 0.95
    assert abs(test.figures(linear_probe(test, train, held, noisy)).srcc) < 0.4


def test_zero_shot_counts_by_the_captions_that_say_the_number() -> None:
    lists = Lists.of(data(40), zeros=0.9)
    said = {counted("dog", n): n for n in range(4)}

    def image(keys: Sequence[str]) -> Tensor:
        return torch.eye(4)[[int(key) % 4 for key in keys]]

    def text(texts: Sequence[str]) -> Tensor:
        return torch.eye(4)[[said[one] for one in texts]]

    scored = zero_shot(lists, lists, image, text, 0.01)
    assert lists.figures(scored).mae < 1e-6
    assert lists.figures(scored).accuracy == 1.0
    assert counted("dog", 0) == "a photo of no dogs"
    assert counted("apple", 1) == "a photo of an apple"
    assert counted("dog", 3) == "a photo of three dogs"


def test_zero_shot_of_other_values_keeps_clips_order_on_the_scale_of_the_training_pictures() -> None:
    rows = [RankRow(f"{k}", "image", float(10 * k)) for k in range(30)]
    lists = Lists.of(RankData(rows, Pictures(), "sizes", template="Rank the brightness of the {object}."))

    def image(keys: Sequence[str]) -> Tensor:
        return torch.tensor([[int(key) / 30, 1.0] for key in keys])

    scored = zero_shot(lists, lists, image, lambda texts: torch.tensor([[1.0, 0.0]] * len(texts)), 0.01)
    figures = lists.figures(scored)
    assert figures.srcc == pytest.approx(1.0)
    assert figures.mae < 1e-3


def test_rows_hold_each_method_and_differences_paired_on_pictures() -> None:
    lists = Lists.of(data(60, ("dog", "cat")), zeros=0.9)
    perfect = {name: values.copy() for name, values in lists.values.items()}
    turned = {name: -values for name, values in lists.values.items()}
    rows = rows_of("tiny", "ours", lists, {"ours": [perfect] * 3, "theirs": [turned] * 3}, draws=20)
    found = {(row["method"], row["metric"]): row for row in rows}
    assert found["ours", "srcc"]["value"] == pytest.approx(1.0)
    assert found["ours-theirs", "srcc"]["low"] == pytest.approx(2.0)
    assert found["ours", "accuracy"]["value"] == 1.0
    assert np.isfinite(found["theirs", "mae"]["high"])
