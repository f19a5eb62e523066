"""Groups hold one instruction, and negatives that really show none."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from lvlm_guard.adapters.data import RankRow
from lvlm_guard.adapters.training.ranker import Groups
from lvlm_guard.errors import KnobError


@dataclass(frozen=True)
class Row:
    image: str
    object: str
    value: float
    weight: float | None = None


def two_objects() -> list[Row]:
    """Pictures 0-9 with dogs, 5-14 with cats, so that five hold both; 15-19 are said to hold none of either."""
    rows = [Row(f"{i}.jpg", "dog", 1 + i % 4) for i in range(10)]
    rows += [Row(f"{i}.jpg", "cat", 1 + i % 3) for i in range(5, 15)]
    return rows + [Row(f"{i}.jpg", name, 0) for i in range(15, 20) for name in ("dog", "cat")]


def drawn(rows: list[Row], count: int, **options: Any) -> list[list[RankRow]]:
    groups = Groups(rows, **options)  # type: ignore[arg-type]
    return [groups.group(number) for number in range(count)]


def truth(rows: list[Row]) -> dict[tuple[str, str], float]:
    return {(row.image, row.object): row.value for row in rows}


@pytest.mark.parametrize("exhaustive", [(), ("dog", "cat")])
def test_a_negative_is_a_picture_whose_own_value_is_zero(exhaustive: tuple[str, ...]) -> None:
    rows = two_objects()
    known = truth(rows)
    seen = Counter()
    for group in drawn(rows, 200, size=10, negatives=0.4, exhaustive=exhaustive):
        assert len({member.object for member in group}) == 1
        assert len({member.image for member in group}) == len(group)
        for member in group:
            own = known.get((member.image, member.object), 0.0 if exhaustive else None)
            assert member.value == own
            seen[(member.object, member.value == 0)] += 1
    assert set(seen) == {(name, none) for name in ("dog", "cat") for none in (True, False)}


def test_a_missing_row_is_unknown_unless_the_object_is_exhaustive() -> None:
    rows = [row for row in two_objects() if row.value]
    images = {m.image for group in drawn(rows, 50, size=12) for m in group if m.object == "dog"}
    assert images == {f"{i}.jpg" for i in range(10)}
    told = drawn(rows, 50, size=12, exhaustive=["dog"])
    without = {m.image for group in told for m in group if m.object == "dog" and m.value == 0}
    assert without == {f"{i}.jpg" for i in range(10, 15)}


def test_the_share_of_negatives_is_kept() -> None:
    for group in drawn(two_objects(), 20, size=10, negatives=0.2):
        assert sum(member.value == 0 for member in group) == 2
        assert len(group) == 10


def test_rare_values_are_drawn_as_often_as_common_ones_where_no_weight_is_given() -> None:
    rows = [Row(f"{i}.jpg", "dog", 1) for i in range(90)] + [Row(f"{i}.jpg", "dog", 2) for i in range(90, 100)]
    often = Counter(m.value for group in drawn(rows, 2000, size=2) for m in group[:1])
    assert often[2] / often.total() == pytest.approx(0.5, abs=0.04)


def test_given_weights_that_are_inverse_frequencies_already_are_not_divided_by_frequency_again() -> None:
    rows = [Row(f"{i}.jpg", "dog", 1, 1 / 90) for i in range(90)]
    rows += [Row(f"{i}.jpg", "dog", 2, 1 / 10) for i in range(90, 100)]
    often = Counter(m.value for group in drawn(rows, 2000, size=2) for m in group[:1])
    assert often[2] / often.total() == pytest.approx(0.5, abs=0.04)


def test_groups_are_drawn_from_seed_and_number_alone_so_that_a_run_can_go_on() -> None:
    first = drawn(two_objects(), 9, size=8, seed=1)
    assert [Groups(two_objects(), size=8, seed=1).group(n) for n in (8, 0, 5)] == [first[8], first[0], first[5]]
    assert first[:3] != first[3:6]
    assert drawn(two_objects(), 9, size=8, seed=2) != first


def test_an_epoch_covers_the_rows_once() -> None:
    assert Groups(two_objects(), size=8).epoch == 3


def test_an_object_with_one_sample_is_left_out() -> None:
    groups = drawn([*two_objects(), Row("99.jpg", "car", 2)], 30, size=8)
    assert {member.object for group in groups for member in group} == {"dog", "cat"}


@pytest.mark.parametrize(
    ("rows", "options", "why"),
    [
        ([], {}, "nothing to order"),
        ([Row("a", "dog", 1), Row("b", "dog", 1)], {}, "nothing to order"),
        ([Row("a", "dog", 1)], {}, "nothing to order"),
        ([Row("a", "dog", 1), Row("a", "dog", 2)], {}, "several values"),
        ([Row("a", "dog", 1, 0.0), Row("b", "dog", 2)], {}, "weight is not above 0"),
        (two_objects(), {"size": 1}, "give 2 pictures"),
        (two_objects(), {"negatives": 1.0}, "give 2 pictures"),
    ],
)
def test_rows_that_teach_nothing_and_sizes_that_are_none_are_refused(rows: Any, options: Any, why: str) -> None:
    with pytest.raises(KnobError, match=why):
        Groups(rows, **options)
