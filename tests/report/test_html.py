import unicodedata
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_guard.report import Html, page, section, tag, write_page
from lvlm_guard.report.html import text

HOSTILE = "<script>alert('x')</script> & \"quoted\" \x00\x1b[31m"


class Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.said = ""

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(name)

    def handle_data(self, data: str) -> None:
        self.said += data


def test_what_a_user_wrote_never_becomes_markup() -> None:
    reader = Words()
    reader.feed(tag("p", HOSTILE, title=HOSTILE))
    assert reader.tags == ["p"]
    assert "alert('x')" in reader.said


@given(st.text())
def test_any_text_survives_a_round_trip_through_an_xml_parser(written: str) -> None:
    element = ElementTree.fromstring(tag("p", tag("b", written), title=written))
    printable = "".join(
        "\N{REPLACEMENT CHARACTER}"
        if unicodedata.category(c) == "Cs" or c in "\ufffe\uffff" or (c < " " and c not in "\t\n\r")
        else c
        for c in written
    )
    assert (element[0].text or "") == printable.replace("\r\n", "\n").replace("\r", "\n")


def test_markup_made_by_tag_is_not_escaped_twice() -> None:
    assert tag("p", tag("b", "a & b")) == "<p><b>a &amp; b</b></p>"


def test_attributes_that_are_none_or_false_are_left_out() -> None:
    assert tag("img", alt="", src=None, hidden=False, class_="a") == '<img alt="" class="a"/>'


def test_a_page_is_well_formed_and_refers_to_nothing_outside_itself(tmp_path) -> None:  # type: ignore[no-untyped-def]
    document = page(HOSTILE, section("One", tag("p", HOSTILE)), lead=HOSTILE, foot=HOSTILE)
    body = document.removeprefix("<!DOCTYPE html>\n")
    assert ElementTree.fromstring(body.replace("&hellip;", "")).tag == "html"
    for outside in ("http:", "https:", "//", "@import", "url(", "<script", "src="):
        assert outside not in document
    written = write_page(tmp_path / "new" / "page.html", document)
    assert written.read_text(encoding="utf-8") == document
    assert [p.name for p in written.parent.iterdir()] == ["page.html"]


def test_the_style_sheet_is_inside_the_page_and_knows_dark_screens() -> None:
    assert "prefers-color-scheme: dark" in page("x")


@pytest.mark.parametrize("value", [Html("<b>x</b>")])
def test_html_passes_as_it_is(value: Html) -> None:
    assert text(value) is value
