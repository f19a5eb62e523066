"""Recall, swaps and intervals against figures counted by hand and known distributions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lvlm_guard.adapters.data import CaptionData, CaptionRow, Facts
from lvlm_guard.adapters.evaluation import retrieval
from lvlm_guard.adapters.evaluation.gallery import Gallery, Searched
from lvlm_guard.adapters.evaluation.metrics import auroc, ends_of, resampled
from lvlm_guard.adapters.retrieval.bank import WordBank
from lvlm_guard.adapters.retrieval.claims import Claims
from lvlm_guard.embedded.captioned import Pictures
from lvlm_guard.report import markdown, verdicts

ROWS = [
    CaptionRow("a", "a red dog", "dog", negatives=("a blue dog", "a red cat"), kinds=("colour", "category")),
    CaptionRow("b", "two cats", "cat", negatives=("two dogs",), kinds=("category",)),
    CaptionRow("b", "cats on grass", "cat"),
]


def gallery(rows: list[CaptionRow] = ROWS, exhaustive: tuple[str, ...] = (), **facts: dict[str, float]) -> Gallery:
    known = {image: Facts(image, objects=objects) for image, objects in facts.items()}
    return Gallery.of(CaptionData(rows, Pictures(), "captions", facts=known, exhaustive=exhaustive), WordBank.world())


def searched(
    scores: list[list[float]], of: Gallery | None = None, claimed: list[list[float]] | None = None
) -> Searched:
    """A model whose cosines are these, images by captions and swaps, and by claims."""
    table: Tensor = torch.tensor(scores)
    made = of or gallery()
    claims = np.zeros(made.claims.true.shape) if claimed is None else np.array(claimed)
    return Searched(made, table, torch.eye(table.shape[1]), claims.astype(np.float32))


def test_a_gallery_holds_every_caption_and_its_swaps_by_kind() -> None:
    made = gallery()
    assert made.images == ("a", "b")
    assert made.image_of.tolist() == [0, 1, 1]
    assert made.swaps[:3] == ("a blue dog", "a red cat", "two dogs")
    assert made.swap_of[:3].tolist() == [0, 0, 1]
    assert made.kinds[:3].tolist() == ["colour", "category", "category"]


def test_rows_without_negatives_get_swaps_that_the_bank_makes() -> None:
    made = gallery([CaptionRow("a", "two red dogs and a cat"), CaptionRow("b", "a bus")])
    assert {made.swap_of[k] for k in range(len(made.swaps))} == {0, 1}
    assert all(text not in ("two red dogs and a cat", "a bus") for text in made.swaps)


def test_pictures_search_among_swaps_and_captions_among_pictures_alone() -> None:
    rows = [ROWS[0], ROWS[1]]
    #                   a red dog, two cats, blue dog, red cat, two dogs
    found = searched([[0.5, 0.1, 0.6, 0.2, 0.1], [0.4, 0.7, 0.1, 0.1, 0.3]], gallery(rows))
    assert found.image_places.tolist() == [2, 1]  # the first is beaten by "a blue dog"
    assert found.text_places.tolist() == [1, 1]
    figures = found.figures()
    assert figures["i2t_r1"] == 0.5
    assert figures["t2i_r1"] == 1.0
    # true .5 .7 against .6 .2 .3: of six pairs one is lost
    assert figures["auroc"] == pytest.approx(5 / 6)
    assert found.above("colour")(np.array([0])) == 0.0
    assert found.above("category")(np.array([0, 1])) == 1.0
    assert math.isnan(found.above("colour")(np.array([1])))


def test_claims_hold_of_pictures_any_of_whose_captions_names_the_object() -> None:
    rows = [*ROWS, CaptionRow("b", "a bus", "bus"), CaptionRow("c", "grass and no dog")]
    made = gallery(rows, ("bus", "cat", "dog"), a={"dog": 1}, b={"cat": 2, "bus": 1}, c={})
    assert made.claims.names == ("bus", "cat", "dog")
    assert made.claims.texts == ["a photo of a bus", "a photo of a cat", "a photo of a dog"]
    assert made.claims.true.tolist() == [[False, False, True], [True, True, False], [False, False, False]]
    found = searched(
        [[0.0] * (len(rows) + len(made.swaps))] * 3, made, [[0.1, 0.2, 0.9], [0.3, 0.8, 0.4], [0.0, 0.5, 0.0]]
    )
    # true .9 .3 .8 against .1 .2 .4 .0 .5 .0: of eighteen pairs two are lost
    assert found.claims_auroc()(np.arange(3)) == pytest.approx(16 / 18)
    assert found.figures()["claims"] == pytest.approx(16 / 18)
    assert found.claims_auroc()(np.array([0, 0])) == 1.0
    assert math.isnan(found.claims_auroc()(np.array([2])))
    assert not gallery([CaptionRow("a", "a dog"), CaptionRow("b", "two dogs")]).claims.telling


def test_what_no_caption_and_no_fact_says_is_unknown_and_never_false() -> None:
    rows = [CaptionRow("a", "a dog"), CaptionRow("b", "a cat"), CaptionRow("c", "a cup")]
    claims = gallery(rows).claims
    assert claims.true.tolist() == [[False, False, True], [True, False, False], [False, True, False]]
    assert not claims.false.any()
    told = gallery(rows, a={"dog": 1, "cat": 0}, b={"dog": 0}).claims
    assert told.false.tolist() == [[True, False, False], [False, False, True], [False, False, False]]
    scores, true = told.judged(np.arange(9, dtype=np.float32).reshape(3, 3))
    assert scores.tolist() == [0, 2, 3, 5, 7]
    assert true.tolist() == [False, True, True, False, True]


def test_a_caption_that_names_what_facts_call_absent_leaves_it_unknown() -> None:
    claims = gallery([CaptionRow("a", "a dog"), CaptionRow("b", "a cat")], a={"dog": 0, "cat": 0}, b={}).claims
    assert claims.names == ("cat",)
    assert claims.false.tolist() == [[True], [False]]


def test_no_swap_says_what_another_caption_or_a_fact_of_the_picture_says() -> None:
    rows = [CaptionRow("a", "a dog on grass"), CaptionRow("a", "a cat on grass"), CaptionRow("b", "a bird")]
    for facts in ({}, {"a": {"horse": 1.0, "cow": 0.0}, "b": {"dog": 0.0}}):
        made = gallery(rows, **facts)
        swaps = {row: {made.swaps[k] for k in np.flatnonzero(made.swap_of == row)} for row in range(3)}
        assert all(swaps.values())
        assert "a cat on grass" not in swaps[0]
        assert "a dog on grass" not in swaps[1]
        categories = {text for k, text in enumerate(made.swaps) if made.kinds[k] == "category"}
        if facts:  # where facts tell of objects, only what is known to be absent is put in another's place
            assert categories == {"a cow on grass", "a dog"}


def test_the_auroc_of_drawn_captions_is_that_of_their_scores_written_out() -> None:
    rng = np.random.default_rng(0)
    rows = [
        CaptionRow(f"{k}", f"a dog number {k}", negatives=tuple(f"a cat {k} {n}" for n in range(k % 4)))
        for k in range(40)
    ]
    of = gallery([replace(row, kinds=tuple("ab"[n % 2] for n in range(len(row.negatives)))) for row in rows])
    scores = np.round(rng.random((40, 40 + len(of.swaps))), 1)  # ties too
    found = searched(scores.tolist(), of)
    for kind in ("", "a", "b"):
        drawn = rng.integers(0, 40, 40)
        own = [
            [found.swapped[n] for n in range(len(of.swaps)) if of.swap_of[n] == row and kind in ("", of.kinds[n])]
            for row in drawn
        ]
        true = [found.true[row] for row, swaps in zip(drawn, own, strict=True) if swaps]
        expected = auroc(true, [score for swaps in own for score in swaps])
        assert found.swap_auroc(kind)(drawn) == pytest.approx(expected)
        won = [found.true[row] > max(swaps) for row, swaps in zip(drawn, own, strict=True) if swaps]
        assert found.above(kind)(drawn) == pytest.approx(np.mean(won))


def test_equal_captions_are_true_of_both_pictures() -> None:
    rows = [CaptionRow("a", "a dog", negatives=("a cat",)), CaptionRow("b", "a dog", negatives=("a cup",))]
    made = gallery(rows)
    assert made.truth[:, :2].all()
    found = searched([[0.1, 0.1, 0.0, 0.0], [0.9, 0.9, 0.0, 0.0]], made)
    assert found.text_places.tolist() == [1, 1]


def test_an_interval_has_the_width_of_a_binomial_share_over_pictures() -> None:
    hits = np.array([1.0] * 300 + [0.0] * 100)
    found = ends_of(np.array([hits[pictures].mean() for _, pictures in resampled(1, 400, 1000)]))
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert found.value == 0.75
    assert found.high - found.low == pytest.approx(2 * half, rel=0.15)


def test_an_interval_is_wide_where_trainings_differ_though_pictures_agree() -> None:
    by_training = np.array([0.2, 0.5, 0.8])
    found = ends_of(np.array([by_training[trainings].mean() for trainings, _ in resampled(3, 1000, 1000)]))
    assert found.low == pytest.approx(0.2, abs=0.11)
    assert found.high == pytest.approx(0.8, abs=0.11)


def test_rows_hold_every_method_and_the_differences_of_ours() -> None:
    of = gallery([ROWS[0], ROWS[1]])
    good = searched([[0.9, 0.1, 0.1, 0.2, 0.1], [0.1, 0.9, 0.1, 0.1, 0.3]], of)
    bad = searched([[0.1, 0.9, 0.8, 0.8, 0.1], [0.9, 0.1, 0.1, 0.1, 0.3]], of)
    rows = retrieval.rows_of("tiny", "ours", {"ours": [good, good], "theirs": [bad, bad]}, draws=50)
    by_name = {(row["method"], row["metric"]): row for row in rows}
    assert by_name["ours", "i2t_r1"]["value"] == 1.0
    assert by_name["theirs", "i2t_r1"]["value"] == 0.0
    assert by_name["ours-theirs", "t2i_r1"]["value"] == 1.0
    assert by_name["ours", "accuracy_category"]["value"] == 1.0
    assert by_name["ours-theirs", "t2i_r1"]["baseline"] == "theirs"
    assert all(
        set(row) - {"baseline"} == {"model", "method", "task", "metric", "value", "low", "high", "n"} for row in rows
    )
    told = markdown(rows, "lead")
    assert "| i2t_r1 | 1.000 [1.000, 1.000] | 0.000 [0.000, 0.000] |" in told
    assert "i2t_r1: ours beats theirs" in told


def test_a_difference_whose_interval_holds_zero_is_no_win_and_less_error_is_one() -> None:
    row = {"model": "m", "method": "ours-theirs", "baseline": "theirs", "task": "t", "n": 5}
    lines = verdicts(
        [
            row | {"metric": "srcc", "value": 0.1, "low": -0.05, "high": 0.2},
            row | {"metric": "srcc", "value": -0.1, "low": -0.2, "high": -0.05},
            row | {"metric": "mae", "value": -0.1, "low": -0.2, "high": -0.05},
        ]
    )
    assert "does not win here: no difference" in lines[0]
    assert "does not win here: theirs is better" in lines[1]
    assert "ours beats theirs" in lines[2]


def test_a_linear_probe_tells_the_objects_it_learnt_apart_and_says_the_mean_of_others() -> None:
    rng = np.random.default_rng(0)
    names = ("cat", "dog", "fox")
    true = rng.random((200, 3)) < 0.4
    features = torch.from_numpy(np.concatenate([true + rng.normal(0, 0.3, (200, 3)), rng.random((200, 5))], 1)).float()
    of = gallery([CaptionRow(f"{k}", f"a thing {k}") for k in range(200)])
    of = replace(of, claims=Claims(names, true, ~true))
    plain = replace(searched(np.zeros((200, 200)).tolist(), of), image=features)
    learnt = Claims(names[:2], true[:, :2], ~true[:, :2])
    found = retrieval.linear_probe(features, learnt, 1e-3)(plain)
    at = np.arange(200)
    assert all(found.claims_auroc(np.array(names) == name)(at) > 0.95 for name in names[:2])
    assert np.allclose(found.claimed[:, 2], found.claimed[:, :2].mean(1))


def test_a_linear_probe_does_not_learn_from_what_is_unknown() -> None:
    rng = np.random.default_rng(1)
    features, true = torch.from_numpy(rng.normal(size=(50, 4))).float(), rng.random((50, 1)) < 0.5
    of = gallery([CaptionRow(f"{k}", f"a thing {k}") for k in range(50)])
    of = replace(of, claims=Claims(("cat",), true, ~true))
    plain = replace(searched(np.zeros((50, 50)).tolist(), of), image=features)
    some = np.arange(50)[:, None] < 30
    half = retrieval.linear_probe(features, Claims(("cat",), true & some, ~true & some), 1e-2)(plain)
    flipped = true ^ ~some  # other labels where nothing is known
    same = retrieval.linear_probe(features, Claims(("cat",), flipped & some, ~flipped & some), 1e-2)(plain)
    assert np.array_equal(half.claimed, same.claimed)
