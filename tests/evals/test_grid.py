import math
from xml.etree import ElementTree

import pytest

from lvlm_guard.evals.report.page.grid import value_grid


def grid(values: list[list[float | None]], **more: object) -> ElementTree.Element:
    columns = [f"c{j}" for j in range(len(values[0]))]
    rows = [f"r{i}" for i in range(len(values))]
    return ElementTree.fromstring(
        value_grid(values, columns, rows, title="t", column_axis="alpha", row_axis="beta", **more)  # type: ignore[arg-type]
    )


def brightness(element: ElementTree.Element) -> list[int]:
    fills = [box.get("fill") for box in element.iter("rect") if box.get("fill")]
    return [sum(int(fill[i : i + 2], 16) for i in (1, 3, 5)) for fill in fills if fill]


def test_a_better_cell_is_brighter_and_the_best_alone_is_framed() -> None:
    drawn = grid([[0.1, 0.2], [0.3, 0.4]], best=[(1, 1)])
    assert brightness(drawn) == sorted(brightness(drawn))
    framed = [g.findtext("title") for g in drawn.iter("g") if g.get("class") == "best"]
    assert framed == ["beta r1, alpha c1: 0.400 (best)"]
    turned = grid([[0.1, 0.2], [0.3, 0.4]], less_is_better=True)
    assert brightness(turned) == sorted(brightness(turned), reverse=True)


def test_a_difference_within_noise_does_not_look_like_a_trend() -> None:
    contrast = [max(b) - min(b) for span in (0.0, 1.0) if (b := brightness(grid([[0.50, 0.51]], span=span)))]
    assert contrast[1] < contrast[0] / 10


def test_a_point_that_was_not_run_is_a_gap_and_not_a_zero() -> None:
    drawn = grid([[0.5, None]])
    assert len(brightness(drawn)) == 1
    assert "beta r0, alpha c1: none" in [g.findtext("title") for g in drawn.iter("g")]


@pytest.mark.parametrize("values", [[[0.1], [0.2, 0.3]], [[math.nan, 0.1], [0.1, 0.1]]])
def test_a_ragged_grid_or_one_of_no_numbers_is_refused(values: list[list[float | None]]) -> None:
    with pytest.raises(ValueError, match="grid"):
        value_grid(values, ["a", "b"], ["c", "d"], title="t", column_axis="x", row_axis="y")
