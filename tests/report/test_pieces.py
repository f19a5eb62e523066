import itertools
import math
import re
from collections.abc import Sequence
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_guard.report import (
    Cell,
    Interval,
    TokenMark,
    dot_plot,
    legend,
    number,
    table,
    token_marks,
    token_strip,
    with_interval,
)
from lvlm_guard.report.plots import ticks_over

WORDS = {5: "a", 6: "cat", 7: "dog", 2: ""}


def decode(ids: Sequence[int]) -> str:
    return " ".join(filter(None, (WORDS[token] for token in ids)))


TRACE = {
    "steps": [
        [
            {"token": 5, "log_prob": {"global": -0.01, "local": None}, "divergence": None, "decided": True},
            {
                "token": 6,
                "log_prob": {"global": math.log(0.25), "local": -0.2},
                "divergence": 0.125,
                "decided": False,
                "overruled": 7,
                "claims": {"6": "a <cat>"},
            },
            {"token": 2, "log_prob": {}, "decided": True},
        ]
    ]
}


def test_a_trace_becomes_marks_without_the_end_of_text() -> None:
    marks = token_marks(TRACE, decode)
    assert [mark.text for mark in marks] == ["a", " cat"]
    assert marks[1].overruled == " dog"
    assert marks[1].claim == "a <cat>"


def test_a_guard_that_ended_the_answer_early_is_shown() -> None:
    steps = [{"token": 5}, {"token": 2, "overruled": 6}]
    marks = token_marks({"steps": [steps]}, decode)
    assert [(mark.text, mark.overruled) for mark in marks] == [("a", None), (" [end]", " cat")]
    steps = [{"token": 5}, {"token": 6, "overruled": 2}, {"token": 2}]
    assert token_marks({"steps": [steps]}, decode)[-1].overruled == " [end]"


def test_a_strip_reads_as_the_answer_and_marks_what_was_overruled() -> None:
    strip = ElementTree.fromstring(token_strip(token_marks(TRACE, decode)))
    kinds = [token.get("class") for token in strip]
    assert kinds == ["token decided", "token overruled"]
    struck = strip[1].find("s")
    assert struck is not None
    assert struck.text == "dog"
    said = "".join(strip[1].itertext())
    for part in ("p 0.250", "log −1.39", "0.125 nats", "a <cat>"):
        assert part in said
    assert "not run" in "".join(strip[0].itertext())


@given(st.text(min_size=1))
def test_any_token_text_gives_well_formed_markup(text: str) -> None:
    ElementTree.fromstring(token_strip([TokenMark(text, {text: -1.0}, 0.1, overruled=text, claim=text)]))


def test_the_legend_is_well_formed() -> None:
    ElementTree.fromstring(legend())


def test_a_table_escapes_its_cells_and_writes_three_digits() -> None:
    html = table(["decoder", "acc"], [["<agla>", 0.87949], ["vote", Cell(None, "good")]], caption="c", note="n")
    root = ElementTree.fromstring(f"<div>{html}</div>")
    assert [cell.text for cell in root.iter("td")] == ["0.879", "–"]
    assert [cell.get("class") for cell in root.iter("td")] == [None, "good"]
    assert "&lt;agla&gt;" in html


def test_a_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 columns, but a row has 1"):
        table(["a", "b"], [["only"]])


def test_numbers_have_a_true_minus_and_no_negative_zero() -> None:
    assert number(-0.0301, 3, signed=True) == "−0.030"
    assert number(0.146, 3, signed=True) == "+0.146"
    assert number(-0.0001, 3, signed=True) == "0.000"
    assert number(None) == "–"
    assert re.sub("<[^>]*>", "", with_interval(0.1, -0.05, 0.25)) == "0.100 [−0.050, 0.250]"


@given(
    st.floats(-1e6, 1e6, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-9),
    st.floats(1e-6, 1e6),
)
def test_ticks_are_even_and_hold_the_data(low: float, span: float) -> None:
    if low + span == low or span < abs(low) * 1e-9:
        return
    ticks = ticks_over(low, low + span)
    gaps = [b - a for a, b in itertools.pairwise(ticks)]
    assert max(gaps) - min(gaps) <= 1e-6 * max(gaps) + 1e-11
    assert ticks[0] <= low + span * 1e-6
    assert ticks[-1] >= low + span * (1 - 1e-6)
    assert 2 <= len(ticks) <= 8


def test_a_dot_lies_where_its_value_is_on_the_axis() -> None:
    html = dot_plot(
        [Interval("greedy", 0.0), Interval("<agla>", 0.10, 0.05, 0.20, "good")],
        title="t",
        axis="accuracy",
        reference=0.0,
        signed=True,
    )
    svg = ElementTree.fromstring(html).find(".//svg")
    assert svg is not None
    ticks = {t.text: float(t.get("x", 0)) for t in svg.iter("text") if t.get("class") == "tick"}
    dots = [float(c.get("cx", 0)) for c in svg.iter("circle")]
    assert dots[0] == pytest.approx(ticks["0.00"])
    assert dots[1] == pytest.approx(ticks["0.10"])
    whisker = next(line for line in svg.iter("line") if line.get("class") == "whisker")
    assert float(whisker.get("x1", 0)) == pytest.approx(ticks["0.05"])
    assert "&lt;agla&gt;" in html


@pytest.mark.parametrize("intervals", [[], [Interval("a", math.nan)], [Interval("a", 1.0, -math.inf, 2.0)]])
def test_nothing_or_nonsense_is_not_plotted(intervals: list[Interval]) -> None:
    with pytest.raises(ValueError, match=r"nothing to plot|finite"):
        dot_plot(intervals, title="t", axis="x")


def test_a_long_label_makes_the_drawing_wider_and_not_itself_shorter() -> None:
    name = "contrast[alpha=0.5, beta=0.1, mode=official]"
    short, long = (
        ElementTree.fromstring(dot_plot([Interval(label, 1.0)], title="t", axis="x")) for label in ("agla", name)
    )
    width, wider = (float((one.find(".//svg").get("viewBox") or "").split()[2]) for one in (short, long))  # type: ignore[union-attr]
    place = next(float(text.get("x", 0)) for text in long.iter("text") if text.text == name)
    assert place >= 7 * len(name)
    assert wider - width > 7 * (len(name) - 27)


def test_one_value_alone_can_be_plotted() -> None:
    assert "<circle" in dot_plot([Interval("a", 1.0)], title="t", axis="x", reference=1.0)
