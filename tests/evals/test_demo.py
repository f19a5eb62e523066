"""The demo end to end on a few scenes: rows, table, page, resuming."""

import io
import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from lvlm_guard.evals import demo
from lvlm_guard.evals.decoders import COMPARED
from lvlm_guard.evals.demo_table import number, p_text, verdict

METHODS = [
    "greedy",
    "sample",
    "sample-matched",
    "apc",
    "vcd",
    "agla",
    "agla-sample",
    "agla-random",
    "vote",
    "matcher",
]


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def results(tmp_path_factory, told):
    return demo.run(
        tmp_path_factory.mktemp("demo"),
        pictures=3,
        captions=6,
        seeds=2,
        batch=32,
        echo=told.append,
        bar=False,
        workers=0,
    )


def test_rows_are_the_long_form_of_every_decoder_and_task(results):
    found = {(row["method"], row["task"]) for row in results.rows if "p_value" not in row}
    tasks = ("pope_random", "pope_popular", "pope_adversarial", "pope_all")
    assert found == {(m, t) for m in METHODS for t in tasks} | {(m, "chair") for m in METHODS[:-1]}
    for row in results.rows:
        assert set(row) - {"p_value"} == {"model", "method", "task", "metric", "value", "low", "high", "n"}
        assert row["model"] == "embedded"
        assert row["low"] <= row["high"]
    differences = {row["method"] for row in results.rows if "p_value" in row}
    assert {f"{m}-greedy" for m in METHODS[1:]} <= differences
    assert {f"{a}-{b}" for a, b in COMPARED} <= differences
    assert results.find("greedy", "pope_adversarial", "accuracy")["n"] == 18
    assert results.find("greedy", "chair", "chair_i")["n"] == 6
    with pytest.raises(KeyError):
        results.find("matcher", "chair", "chair_i")


def test_what_is_on_disk_is_what_was_returned(results):
    stored = json.loads((results.out / "results.json").read_text())
    assert stored["rows"] == results.rows
    assert {"command", "version", "environment", "rows"} <= set(stored)
    assert json.loads((results.out / "run.json").read_text())["finished"] is True
    assert {path.stem for path in (results.out / "answers").iterdir()} == set(METHODS)


@pytest.mark.parametrize("width", [80, 100, 130])
def test_the_table_fits_its_terminal_and_cuts_nothing(results, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(results.table(width))
    text = console.export_text()
    assert "…" not in text
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    for method in METHODS:
        assert re.search(rf"^ ?{method}\s", text, re.M), method


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


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(results):
    text = results.page.read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.images >= 3
    assert all(source.startswith("data:image/") for source in reader.sources)
    assert "url(" not in text
    assert "<script" not in text
    for words in ("relevance map", "The local view", "Guarded by", "They do not show that a method helps a real model"):
        assert words in text


def test_the_limits_and_the_comparisons_are_said_beside_the_table(results):
    remarks = results.remarks()
    assert remarks[-1] == demo.LIMITS
    assert any("agla − agla-random" in remark for remark in remarks)
    assert any("matcher alone" in remark for remark in remarks)


def test_an_interrupted_run_goes_on_and_a_finished_one_starts_again(results, tmp_path):
    for name in ("answers", "run.json"):
        source = results.out / name
        if source.is_dir():
            (tmp_path / name).mkdir()
            for file in source.iterdir():
                (tmp_path / name / file.name).write_bytes(file.read_bytes())
    note = json.loads((results.out / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(note | {"finished": False, "seconds": 1000.0}))
    vote = tmp_path / "answers" / "vote.jsonl"
    vote.write_text("\n".join(vote.read_text().splitlines()[:5]))
    told = []
    again = demo.run(tmp_path, pictures=3, captions=6, seeds=2, batch=32, echo=told.append, bar=False, workers=0)
    assert any("Going on" in line for line in told)
    assert again.rows == results.rows
    assert again.seconds > 1000
    assert demo._earlier_seconds(tmp_path, again.settings) is None


def test_differences_are_called_clear_only_by_interval_and_test_together():
    row = {"metric": "accuracy", "value": 0.1, "low": 0.02, "high": 0.2, "p_value": 0.01}
    assert verdict(row) == "good"
    assert verdict(row | {"metric": "chair_i"}) == "bad"
    assert verdict(row | {"p_value": 0.2}) == ""
    assert verdict(row | {"low": -0.01}) == ""
    assert [number(value, signed=True) for value in (-0.1464, 0.02, -0.0001)] == ["−.146", "+.020", "+.000"]
    assert [number(value) for value in (0.879, 1.0, 0.0)] == [".879", "1.000", ".000"]
    assert p_text(0.0004) == "p<.001"
    assert p_text(0.0421) == "p=.042"
