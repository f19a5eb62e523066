"""The demo end to end on a few scenes: the run, the page, and what is said beside the table."""

import json
from html.parser import HTMLParser

import pytest

from lvlm_guard.evals.errors import DataError, VoidRunError
from lvlm_guard.evals.report.terminal import sentences, tables
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.studies import demo
from lvlm_guard.evals.tasks.world import LIMITS

SMALL = Settings(limit=3, captions=6, seeds=2, batch=32)
TINY = Settings(limit=1, captions=2, seeds=1, batch=32, methods=("vote",), controls=False)


def ran(out, settings):
    return demo.run(out, settings, echo=lambda _: None, bar=False, workers=1)


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    return ran(tmp_path_factory.mktemp("demo"), SMALL)


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
        self.sources += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        self.images += tag == "img"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(shown):
    text = shown[1].read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.images >= 3
    assert all(source.startswith(("data:image/", "#")) for source in reader.sources)
    assert "<script" not in text
    for words in ("relevance map", "The local view", "Guarded by", "They do not show that a method helps a real model"):
        assert words in text


def test_the_default_is_what_eval_run_asks_by_default():
    assert (demo.SETTINGS.tasks, demo.SETTINGS.methods, demo.SETTINGS.seeds) == (
        ("world_pope", "world_chair"),
        ("agla", "focus", "vote", "vcd"),
        3,
    )
    assert demo.SETTINGS.limit is None


def test_every_control_stands_beside_the_methods_with_the_figures_that_no_tilt_gives(shown):
    found = {(row["decoder"], row["task"], row["metric"]) for row in shown[0]["rows"] if row["baseline"] is None}
    roles = {decoder["name"]: decoder["role"] for decoder in shown[0]["decoders"]}
    assert {"greedy", "agla", "focus", "vote", "vcd", "matcher", "tilt", "olm", "sample"} <= roles.keys()
    for name in ("greedy", "agla", "focus", "vote", "vcd", "tilt"):
        for metric in ("accuracy", "balanced_accuracy", "accuracy_matched", "auroc", "tilt", "yes_ratio", "f1"):
            for task in ("pope_random", "pope_popular", "pope_adversarial", "pope_all"):
                assert (name, task, metric) in found
    for metric in ("chair_i", "object_recall", "f1", "length"):
        assert ("vote", "chair", metric) in found


def test_the_limits_and_a_verdict_of_each_method_are_said_beside_the_table(shown):
    said = sentences(shown[0])
    assert said[-1] == LIMITS
    for method in ("agla", "focus", "vote", "vcd"):
        assert any(sentence.startswith(f"{method} on pope_all: ") for sentence in said)
    assert len(tables(shown[0], 140)) == 2


@pytest.mark.slow
def test_another_demo_in_the_folder_is_replaced_and_another_run_is_not(shown, tmp_path):
    first = ran(tmp_path, TINY)
    again = ran(tmp_path, SMALL)
    assert first[0]["rows"] != again[0]["rows"] == shown[0]["rows"]
    asked = json.loads((tmp_path / "asked.json").read_text())
    (tmp_path / "asked.json").write_text(json.dumps(asked | {"command": "eval run"}))
    with pytest.raises(DataError, match="holds a run with other"):
        ran(tmp_path, TINY)


def test_a_void_run_has_no_page(tmp_path):
    cut = Settings(limit=1, captions=2, seeds=1, batch=32, methods=("vote",), controls=False, max_new_tokens=1)
    with pytest.raises(VoidRunError, match="cut at the limit"):
        ran(tmp_path, cut)
    assert not (tmp_path / "demo.html").exists()
