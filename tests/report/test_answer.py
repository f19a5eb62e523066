from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from lvlm_guard.report import Looked, Said, answer_page

WORDS = ["", "yes", "no"]
TRACE = {
    "method": "agla",
    "knobs": {"alpha": 2.0, "matcher": None},
    "execution": "lazy",
    "guarded": True,
    "global_forwards": 2,
    "local_forwards": 1,
    "local_tokens": 48,
    "masks": 1,
    "steps": [[{"token": 2, "overruled": 1, "decided": False, "log_prob": {"global": -0.9, "local": -0.1}}]],
}
PICTURE = Image.new("RGB", (96, 96), "teal")


def decode(tokens: Sequence[int]) -> str:
    return " ".join(WORDS[token] for token in tokens).strip()


def body(page: str) -> ElementTree.Element:
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def test_the_page_of_an_answer_holds_maps_answers_counts_and_remarks() -> None:
    looked = Looked(PICTURE, np.eye(96), np.eye(96) > 0, PICTURE, "score <0.4>")
    said = [Said("greedy", "yes", 0.01), Said("agla", "no", 0.02, TRACE)]
    page = answer_page("is there <b> ?", [looked], said, decode, model="m & m", remarks=["world <only>"], made="v1")
    root = body(page)
    assert len(root.findall(".//img")) == 3
    assert [cell.text for cell in root.findall(".//td")] == [
        "0.010",
        "plain",
        *"––––",
        "0.020",
        "lazy",
        "2",
        "1",
        "48",
        "1",
    ]
    assert root.findtext(".//h1") == "is there <b> ?"
    assert root.findtext(".//aside/p") == "world <only>"
    token = root.find(".//p[@class='tokens']/span")
    assert token is not None
    assert (token.text, token.findtext("s")) == ("no", "yes")


@pytest.mark.parametrize(
    ("execution", "method", "expected"),
    [("lazy", "agla", "No second view was made"), ("single", "apc", "apc makes no second view")],
)
def test_a_page_without_a_second_view_says_why(execution: str, method: str, expected: str) -> None:
    trace = TRACE | {"masks": 0, "execution": execution, "method": method}
    page = answer_page("q", [Looked(PICTURE)], [Said(method, "no", 0.1, trace)], decode, model="m")
    assert expected in page
    assert len(body(page).findall(".//img")) == 1


def test_an_answer_without_a_word_is_shown_as_such() -> None:
    assert "(nothing)" in answer_page("q", [], [Said("greedy", "", 0.1)], decode, model="m")
