"""Values of pictures: what absence means, what teaches no order, and the groups drawn from them."""

from __future__ import annotations

import pytest
from in_memory import InMemory
from PIL import Image

from lvlm_guard.adapters.data import RankData, RankRow
from lvlm_guard.adapters.errors import DataError
from lvlm_guard.adapters.training.ranker import Groups

ROWS = [
    RankRow("a", "dog", 2),
    RankRow("a", "cat", 1),
    RankRow("b", "cat", 3),
    RankRow("c", "dog", None),
    RankRow("d", "age", 40),
]
STORE = InMemory({name: Image.new("RGB", (4, 4), (k * 40, 0, 0)) for k, name in enumerate("abcd")})


def data(rows: list[RankRow] | None = None, exhaustive: tuple[str, ...] = ("dog",), **more: object) -> RankData:
    return RankData(rows or ROWS, STORE, "toy", exhaustive, **more)  # type: ignore[arg-type]


def known(found: RankData, name: str) -> dict[str, float]:
    return dict(zip(*found.values(name), strict=True))  # type: ignore[arg-type]


def test_absence_means_zero_for_exhaustive_objects_only_and_null_means_unknown() -> None:
    assert known(data(), "dog") == {"a": 2, "b": 0, "d": 0}
    assert known(data(), "cat") == {"a": 1, "b": 3}


def test_an_object_with_one_picture_is_refused_or_left_out_as_asked() -> None:
    with pytest.raises(DataError, match=r"1 of 3 objects .* age"):
        data().teaching()
    left = data().teaching("skip")
    assert left.objects == ["dog", "cat"]
    assert left.dropped["objects that teach no order"] == 1
    assert known(left, "dog") == known(data(), "dog")
    with pytest.raises(DataError, match="1 of 1 objects"):
        data([RankRow("d", "age", 40)]).teaching("skip")


@pytest.mark.parametrize("template", ["Rank {object[0]}.", "Rank {object[a]}.", "Rank {object.upper}.", "{}", "{", " "])
def test_an_instruction_with_more_than_the_object_in_braces_is_refused(template: str) -> None:
    with pytest.raises(DataError, match="can't be filled in"):
        data(template=template)


def counted(n: int = 60) -> RankData:
    """Return pictures k of k % 4 dogs, every third of which also shows cats; nobody counted the last one's dogs."""
    rows = [RankRow(str(k), "dog", k % 4) for k in range(n) if k % 4]
    rows += [RankRow(str(k), "cat", 1 + k % 5) for k in range(0, n, 3)]
    rows += [RankRow(str(n), "dog", None)]
    store = InMemory({str(k): Image.new("RGB", (4, 4), (k, 0, 0)) for k in range(n + 1)})
    return RankData(rows, store, "counted", ("dog", "cat"))


def test_groups_hold_one_instruction_and_call_nothing_unknown_or_shown_a_zero() -> None:
    found = counted()
    truth = {name: known(found, name) for name in found.objects}
    groups = Groups(found.rows, 16, negatives=0.25, exhaustive=found.exhaustive, seed=1)
    for group in map(groups.group, range(40)):
        assert len({member.object for member in group}) == 1
        assert len({member.image for member in group}) == len(group) == 16
        assert sum(member.value == 0 for member in group) == 4
        for member in group:
            assert truth[member.object][member.image] == member.value
