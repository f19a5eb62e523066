"""The demo end to end on a few scenes: the run, the page, and what is said beside the table."""

import json
from html.parser import HTMLParser

import pytest

from lvlm_guard.evals.errors import DataError, VoidRunError
from lvlm_guard.evals.report.remarks import remarks
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.studies import demo
from lvlm_guard.evals.tasks.world import LIMITS

SMALL = Settings(limit=3, captions=6, seeds=2, batch=32)


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def shown(tmp_path_factory, told):
    return demo.run(tmp_path_factory.mktemp("demo"), SMALL, echo=told.append, bar=False, workers=1)


class Reader(HTMLParser):
    """Collects what a page refers to, and whether its tags close."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.images = [], [], 0

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        self.images += tag == "img"
        if tag not in ("img", "meta", "br", "hr", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        self.images += tag == "img"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(shown):
    text = shown.page.read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.images >= 3
    assert all(source.startswith("data:image/") for source in reader.sources)
    assert "url(" not in text
    assert "<script" not in text
    for words in ("relevance map", "The local view", "Guarded by", "They do not show that a method helps a real model"):
        assert words in text


def test_the_default_is_what_eval_run_asks_by_default():
    assert (demo.SETTINGS.tasks, demo.SETTINGS.methods, demo.SETTINGS.seeds) == (
        ("world_pope", "world_chair"),
        ("agla", "vote", "vcd"),
        3,
    )
    assert demo.SETTINGS.limit is None


def test_the_limits_and_the_comparisons_are_said_beside_the_table(shown):
    said = remarks(shown.saved.run)
    assert said[-1] == LIMITS
    assert any("agla − agla-random" in sentence for sentence in said)
    assert any("the matcher's own answer" in sentence for sentence in said)


def test_another_demo_in_the_folder_is_replaced_and_another_run_is_not(shown, tmp_path):
    smaller = Settings(limit=1, captions=2, seeds=1, batch=32)
    first = demo.run(tmp_path, smaller, echo=lambda _: None, bar=False, workers=1)
    again = demo.run(tmp_path, SMALL, echo=lambda _: None, bar=False, workers=1)
    assert first.saved.run["rows"] != again.saved.run["rows"] == shown.saved.run["rows"]
    begun = json.loads((tmp_path / "begun.json").read_text())
    (tmp_path / "begun.json").write_text(json.dumps(begun | {"command": "eval run"}))
    with pytest.raises(DataError, match="command"):
        demo.run(tmp_path, SMALL, echo=lambda _: None, bar=False, workers=1)


def test_a_void_run_has_no_page(tmp_path):
    cut = Settings(limit=1, captions=2, seeds=1, batch=32, max_new_tokens=1)
    with pytest.raises(VoidRunError, match="cut at the limit"):
        demo.run(tmp_path, cut, echo=lambda _: None, bar=False, workers=1)
    assert not (tmp_path / "demo.html").exists()
