import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_guard.report import Dot, confusion_square, scatter, value_grid
from lvlm_guard.report.scatter import HEIGHT, LETTER, TALL, WIDTH

counts = st.integers(0, 10**6).map(lambda thirds: thirds / 3)  # means over three runs


def areas(square: str) -> dict[str, float]:
    found = {}
    for group in ElementTree.fromstring(square).iter("g"):
        box, title = group.find("rect"), group.find("title")
        assert box is not None
        assert title is not None
        assert title.text is not None
        # a gap of two units belongs to each box
        found[title.text.rpartition(":")[0]] = (float(box.get("width", 0)) + 2) * (float(box.get("height", 0)) + 2)
    return found


def test_areas_of_a_confusion_square_are_shares_of_all_answers() -> None:
    found = areas(confusion_square(30, 10, 20, 30, title="greedy", unread=(5, 5)))
    whole = sum(found.values())
    shares = {name: round(area / whole, 3) for name, area in found.items()}
    assert shares == {
        "labelled yes, answered yes": 0.3,
        "labelled yes, answered no": 0.1,
        "labelled yes, unreadable": 0.05,
        "labelled no, answered yes": 0.2,
        "labelled no, answered no": 0.3,
        "labelled no, unreadable": 0.05,
    }


def test_right_answers_are_green_and_wrong_ones_red_whatever_the_label() -> None:
    square = ElementTree.fromstring(confusion_square(3, 1, 2, 4, title="vote"))
    kinds = {(g.findtext("title") or "").rpartition(":")[0]: g.get("class") for g in square.iter("g")}
    assert [kind for name, kind in kinds.items() if name.split()[1].strip(",") == name.split()[-1]] == ["good", "good"]
    assert sorted(kinds.values(), key=str) == ["bad", "bad", "good", "good"]


@given(counts, counts, counts, counts)
def test_any_counts_give_a_well_formed_square_inside_its_frame(tp: float, fn: float, fp: float, tn: float) -> None:
    if not tp + fn + fp + tn:
        return
    square = ElementTree.fromstring(confusion_square(tp, fn, fp, tn, title="<&>"))
    for box in square.iter("rect"):
        assert float(box.get("x", -1)) >= -0.01
        assert float(box.get("x", -1)) + float(box.get("width", 0)) <= 132.01


@pytest.mark.parametrize("wrong", [(0, 0, 0, 0), (-1, 1, 1, 1), (math.nan, 1, 1, 1), (math.inf, 1, 1, 1)])
def test_a_square_of_no_answers_or_of_no_counts_is_refused(wrong: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="counts"):
        confusion_square(*wrong, title="greedy")


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


names = st.text("abcdefgh-", min_size=1, max_size=14)
dots = st.lists(st.builds(Dot, names, st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12)


@given(dots)
def test_every_dot_and_every_name_lies_within_the_figure(given_: list[Dot]) -> None:
    drawn = ElementTree.fromstring(scatter(given_, title="t", x_axis="recall", y_axis="CHAIR_i"))
    for dot in drawn.iter("circle"):
        assert 0 <= float(dot.get("cx", -1)) <= WIDTH
        assert 0 <= float(dot.get("cy", -1)) <= HEIGHT
    for name in (text for text in drawn.iter("text") if text.get("class") == "name"):
        assert float(name.get("x", -1)) >= 0
        assert float(name.get("x", -1)) + LETTER * len(name.text or "") <= WIDTH


def test_names_of_neighbours_do_not_cover_each_other() -> None:
    near = [Dot(f"decoder-{i}", 0.5 + i / 1000, 0.5) for i in range(4)] + [Dot("far", 0.9, 0.1)]
    drawn = ElementTree.fromstring(scatter(near, title="t", x_axis="x", y_axis="y"))
    places = [
        (float(text.get("x", 0)), float(text.get("y", 0)), LETTER * len(text.text or ""))
        for text in drawn.iter("text")
        if text.get("class") == "name"
    ]
    for i, (x, y, width) in enumerate(places):
        for other_x, other_y, other_width in places[i + 1 :]:
            assert x + width <= other_x or other_x + other_width <= x or abs(y - other_y) >= TALL - 0.5


def test_higher_values_lie_further_up_and_to_the_right() -> None:
    drawn = scatter([Dot("low", 0.1, 0.2), Dot("high", 0.4, 0.9)], title="t", x_axis="x", y_axis="y")
    low, high = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert float(low[0]) < float(high[0])
    assert float(low[1]) > float(high[1])


@pytest.mark.parametrize("given_", [[], [Dot("a", math.nan, 0.1)]])
def test_a_plot_of_nothing_or_of_no_numbers_is_refused(given_: list[Dot]) -> None:
    with pytest.raises(ValueError, match="plot"):
        scatter(given_, title="t", x_axis="x", y_axis="y")
