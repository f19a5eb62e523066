"""The report of runs made by hand, read back as a document; and what a real browser shows of it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from results import results

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import chair
from lvlm_guard.evals.report.disagreement import pieces
from lvlm_guard.evals.report.layout import Results, interval, written
from lvlm_guard.evals.report.page import charts, write_report
from lvlm_guard.evals.report.saved import Run
from lvlm_guard.evals.spec.settings import Settings
from tests.support import runs

HOSTILE = "<script>alert(1)</script> & <img src='http://x'> {{ 7 * 7 }}"


def evidence(folder: Path, keys: Sequence[str], task: str = "world_pope", **more: Any) -> None:
    place = folder / "evidence"
    place.mkdir(exist_ok=True)
    items = []
    for key in keys:
        view: dict[str, Any] = {"text": "?", "kept": 0.5}
        for what in ("picture", "map", "local"):
            view[what] = f"{task}{key}-{what}.jpg"
            Image.new("RGB", (32, 24), "blue").save(place / view[what])
        items.append({"task": task, "key": key, "views": [view]} | more)
    (place / "index.json").write_text(json.dumps({"maps": "Bright is relevant.", "items": items}))


def page_of(folder: Path) -> Element:
    text = write_report(folder).read_text(encoding="utf-8")
    return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))


def words(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def shown(page: Element) -> list[Element]:
    return list(page.iter("article"))


def marks(element: Element) -> list[str]:
    return [words(one) for one in element.iter("span") if (one.get("class") or "").startswith("mark")]


PLAIN, OURS, LABELS = "yynnyy", "ynny?y", "yyyynn"


@pytest.fixture
def pope(tmp_path: Path) -> Run:
    said = {"y": "yes", "n": "no", "?": "perhaps"}
    task = runs.pope([said[x] for x in LABELS])
    answers = {"greedy": [said[x] for x in PLAIN], "agla": [said[x] for x in OURS]}
    run = runs.saved(tmp_path, task, answers, scores={"greedy": [2, 1, -1, -2, 1, 2], "agla": [3, -1, -1, 1, 0.5, 2]})
    evidence(tmp_path, ["1", "3", "4"])
    return run


def test_the_page_stands_alone_and_holds_no_script(pope: Run) -> None:
    text = write_report(pope.folder).read_text(encoding="utf-8")
    assert "<script" not in text
    addresses = re.findall(r'(?:\bsrc|href|action|poster|\bdata)="([^"]*)"', text)
    assert addresses
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert re.findall(r"url\((?!#)", text) == []
    assert "@import" not in text
    assert "http" not in re.sub(r'xmlns(?::xlink)?="[^"]*"', "", text)


@pytest.mark.slow
def test_the_same_folder_gives_the_same_page_without_any_model(pope: Run) -> None:
    first = write_report(pope.folder).read_bytes()
    assert write_report(pope.folder).read_bytes() == first
    code = (
        f"import sys; from lvlm_guard.evals.report.page import write_report; write_report({str(pope.folder)!r}); "
        "print([m for m in ('torch', 'transformers', 'lmms_eval', 'datasets') if m in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "[]"
    assert (pope.folder / "report.html").read_bytes() == first


def test_the_table_holds_the_numbers_of_the_run(pope: Run) -> None:
    text = words(page_of(pope.folder))
    for metric in ("accuracy", "accuracy_matched", "auroc"):
        row = pope.results.value("pope_random", "agla", metric)
        change = pope.results.difference("pope_random", "agla", metric)
        assert row is not None
        assert change is not None
        assert f"{written(row)}{written(change)} {interval(change)}" in text
    assert "matched accuracy" in text
    assert "AUROC" in text
    assert ".250" in text  # seconds


def test_charts_draw_every_decoder_by_role_and_follow_the_page_s_colours() -> None:
    found = Results(results())
    drawn = list(charts.differences(found, found.tasks[0]))
    whole = ElementTree.fromstring("<div>" + "".join(drawn) + "</div>")
    assert len(list(whole.iter("svg"))) == len(found.main(found.tasks[0]))
    assert "AUROC on pope_all" in words(whole)
    marks = {
        words(line).partition(":")[0]: line.get("class")
        for line in next(whole.iter("svg")).iter("g")
        if (line.get("class") or "").startswith("row")
    }
    assert set(marks) == {"sample", "tilt", "prompt-no", "matcher", "agla", "agla-random", "vote"}
    assert marks["agla"] == "row good"
    assert marks["vote"] == "row bad"
    assert marks["tilt"] == "row  hollow"
    assert not re.search(r"#[0-9a-f]{6}", "".join(drawn))


def test_verdicts_head_the_page_and_controls_are_grey(tmp_path: Path) -> None:
    labels = ["yes", "no"] * 40
    scores = {"greedy": [0.5 + (x == "yes") for x in labels], "agla": [(x == "yes") - 0.5 for x in labels]}
    said = {name: ["yes" if s > 0 else "no" for s in own] for name, own in scores.items()}
    decoders = {"prompt-no": {"role": "control"}}
    run = runs.saved(tmp_path, runs.pope(labels), said | {"prompt-no": ["no"] * 80}, scores=scores, decoders=decoders)
    page = page_of(run.folder)
    (card,) = (item for item in page.iter("li") if item.find("h3") is not None)
    assert words(card).startswith("agla moves the threshold Accuracy +.500")
    table = next(table for table in page.iter("table") if table.get("class") == "scores")
    rows = {words(row[0]): row.get("class") for row in table.iter("tr")}
    assert (rows["prompt-no"], rows["agla"]) == ("control", None)


def test_broken_comes_first_then_fixed_then_unreadable_with_every_answer_marked(tmp_path: Path) -> None:
    task = runs.pope(["yes", "no", "no"])
    runs.saved(tmp_path, task, {"greedy": ["no", "perhaps", "no"], "agla": ["yes", "perhaps", "yes"]})
    evidence(tmp_path, ["0", "1", "2"])
    page = page_of(tmp_path)
    articles = shown(page)
    assert [article.findtext("h3") for article in articles] == [
        "Broken by agla",
        "Fixed by agla",
        "Unreadable with agla",
    ]
    assert [marks(article) for article in articles] == [
        ["✓ right", "✗ wrong"],
        ["✗ wrong", "✓ right"],
        ["? unreadable", "? unreadable"],
    ]
    assert len(list(articles[0].iter("img"))) == 3
    (matrix,) = (table for table in page.iter("table") if table.get("class") == "matrix")
    assert [words(row) for row in matrix.iter("tr")][1:] == ["question 2no✓✗", "question 0yes✗✓", "question 1no??"]


def test_whole_answers_are_shown_and_what_a_model_wrote_never_becomes_markup(tmp_path: Path) -> None:
    long = f"no. {HOSTILE} " + "and then " * 300 + "the end\x07"
    runs.saved(tmp_path, runs.pope(["yes", "no"]), {"greedy": ["yes", "no"], "agla": [long, "no"]})
    evidence(tmp_path, ["0"])
    page = page_of(tmp_path)
    assert " ".join(long.replace("\x07", "\ufffd").split()) in words(shown(page)[0])
    assert list(page.iter("script")) == []
    assert all((img.get("src") or "").startswith("data:") for img in page.iter("img"))


def test_a_void_run_has_a_banner_its_reasons_and_no_score(tmp_path: Path) -> None:
    run = runs.saved(tmp_path, runs.pope(["yes", "no"]), {"greedy": ["yes", "no"], "agla": ["", "no"]})
    evidence(tmp_path, ["0"])
    assert run.status == "void"
    page = page_of(tmp_path)
    (banner,) = (e for e in page.iter("aside") if e.get("role") == "alert")
    assert "void" in words(banner)
    assert all(reason in words(banner) for reason in run.results.data["void"])
    assert list(page.iter("table")) == []
    assert shown(page) == []


def test_a_run_that_has_not_finished_or_is_not_scored_says_so(tmp_path: Path, pope: Run) -> None:
    (pope.folder / "results.json").unlink()
    page = page_of(pope.folder)
    assert "lvlm-guard eval score" in words(page)
    assert list(page.iter("table")) == []
    (tmp_path / "other").mkdir()
    told = {"settings": Settings().to_dict(), "tasks": []}
    (tmp_path / "other" / "asked.json").write_text(json.dumps(told))
    assert "has not finished" in words(page_of(tmp_path / "other"))


def test_a_folder_without_a_run_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["none", "cut", "other", "files gone"])
def test_without_usable_evidence_the_page_says_so_and_scores_and_answers_stay(pope: Run, damage: str) -> None:
    folder = pope.folder / "evidence"
    if damage == "none":
        shutil.rmtree(folder)
    elif damage == "files gone":
        for path in folder.glob("*.jpg"):
            path.unlink()
    else:
        (folder / "index.json").write_text({"cut": '{"items": [', "other": "[]"}[damage])
    page = page_of(pope.folder)
    assert list(page.iter("img")) == []
    assert list(page.iter("table"))
    assert len(shown(page)) == 3
    assert ("No pictures were collected" in words(page)) == (damage != "files gone")


def test_no_more_than_sixty_items_are_shown(tmp_path: Path) -> None:
    n = 70
    runs.saved(tmp_path, runs.pope(["yes"] * n), {"greedy": ["yes"] * n, "agla": ["no"] * n})
    evidence(tmp_path, [str(i) for i in range(n)])
    page = page_of(tmp_path)
    assert len(shown(page)) == 60
    assert "60 of 70" in words(page)


def test_a_picture_that_could_not_be_used_is_said_in_its_place(tmp_path: Path) -> None:
    runs.saved(tmp_path, runs.pope(["yes"]), {"greedy": ["yes"], "agla": ["no"]})
    evidence(tmp_path, ["0"], views=[], problem="No picture at 'gone.jpg'")
    assert "No picture at 'gone.jpg'" in words(shown(page_of(tmp_path))[0])


def test_captions_mark_what_is_not_there_and_tell_what_is(tmp_path: Path) -> None:
    task = runs.captions([["dog", "cat"], ["bus"]])
    said = {"greedy": ["Two Dogs, a cup.", "a bus"], "vote": ["a dog and a cat", "a bus"]}
    run = runs.saved(tmp_path, task, said)
    assert run.status == "complete"
    evidence(tmp_path, ["0"], task="world_chair")
    page = page_of(tmp_path)
    (article,) = shown(page)
    assert [span.text for span in article.iter("span") if span.get("class") == "absent"] == ["cup"]
    text = words(article)
    assert "Two Dogs, a cup." in text
    assert "names 1 of 2; ✗ not there: cup" in text
    assert "names 2 of 2" in text
    for metric in ("CHAIR_i", "CHAIR_s", "object recall", "F1", "words", "repeats"):
        assert metric in words(page)


CAPTIONS = ("a Dog.", "hot dogs, a wine glass", "İstanbul: a cat's cup", "cups/dogs “bus”", "dog dog\n\ndog", "")


@given(st.text("adogct bus.,'\"İẞ-\n", max_size=60) | st.sampled_from(CAPTIONS))
def test_marking_changes_no_letter_of_a_caption(text: str) -> None:
    (caption,) = chair.compare([{"image_id": 0, "caption": text}], {0: []}, vocabulary=runs.NOUNS)
    assert "".join(piece for piece, _ in pieces(caption)) == text
    for node, start, end in caption.spans:
        assert node in text[start:end].lower()


def test_words_of_two_tokens_are_marked_whole() -> None:
    (caption,) = chair.compare([{"image_id": 0, "caption": "A hot dog near two passenger jets."}], {0: []})
    assert [piece for piece, absent in pieces(caption) if absent] == ["hot dog", "passenger jets"]


def test_everything_needed_to_repeat_a_run_is_on_the_page(pope: Run) -> None:
    text = words(page_of(pope.folder))
    asked = pope.asked
    for needed in (asked["tasks"][0]["digest"], asked["code"], asked["weights"], asked["started"], "torch"):
        assert needed in text
    assert str(pope.results.data["identity"]) in text


def test_warnings_and_flags_stand_above_the_scores(tmp_path: Path) -> None:
    more = {"warnings": ["Half of it is guesswork."], "flags": ["--no-controls: switched off."]}
    runs.saved(tmp_path, runs.pope(["yes", "no"]), {"greedy": ["yes", "no"], "agla": ["no", "no"]}, **more)
    text = words(page_of(tmp_path))
    assert (
        text.index("Half of it is guesswork.")
        < text.index("--no-controls: switched off.")
        < text.index("AUROC" if "AUROC" in text else "balanced")
    )


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser")
def test_in_a_browser_a_filter_shows_what_it_names_and_nothing_overflows_a_phone(pope: Run, tmp_path: Path) -> None:
    page = write_report(pope.folder).read_text(encoding="utf-8")
    probe = """<script>
      const told = {};
      const visible = () => [...document.querySelectorAll('article')].filter(a => a.offsetHeight > 0)
        .map(a => a.querySelector('h3').textContent);
      told.all = visible();
      for (const button of document.querySelectorAll('input[type=radio]')) {
        button.click(); told[button.id] = visible();
      }
      told.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
      document.title = JSON.stringify(told);
    </script></body>"""
    probed = tmp_path / "probed.html"
    probed.write_text(page.replace("</body>", probe), encoding="utf-8")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    own = [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,900", "--dump-dom", probed.as_uri()]
    done = subprocess.run(
        [str(CHROMIUM), *quiet, *own],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    told = json.loads(html.unescape(re.findall("<title>(.*?)</title>", done.stdout)[0]))
    assert told["overflow"] <= 0
    assert told["all"] == ["Broken by agla", "Fixed by agla", "Unreadable with agla"]
    assert told["pictures-0-0-broken"] == ["Broken by agla"]
    assert told["pictures-0-0-fixed"] == ["Fixed by agla"]
    assert told["pictures-0-0-unreadable"] == ["Unreadable with agla"]
    assert told["pictures-0-all"] == told["all"]
