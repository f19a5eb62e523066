"""POPE scores against what the published scripts printed."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import pope
from tests.support import pope_scores

DATA = Path(__file__).parents[1] / "data" / "pope"
GOLDEN = json.loads((DATA / "golden_scores.json").read_text())
CASES = json.loads((DATA / "parse_cases.json").read_text())


def golden_rows(name):
    lines = gzip.decompress((DATA / f"{name}.gz").read_bytes()).decode().splitlines()
    templates = GOLDEN["templates"]
    for question in map(json.loads, lines):
        number = (7 * question["question_id"] + len(question["text"])) % len(templates)
        yield {
            "question_id": question["question_id"],
            "label": question["label"],
            "answer": templates[number],
        }


@pytest.mark.parametrize("name", GOLDEN["files"])
def test_both_published_scripts_come_out_to_the_last_digit(name):
    rows = list(golden_rows(name))
    official, agla = pope_scores.score(rows, "official"), pope_scores.score(rows, "agla")
    gold = GOLDEN["files"][name]
    for key, ours in [("TP", "tp"), ("FP", "fp"), ("TN", "tn"), ("FN", "fn")]:
        assert official[ours] == gold["pope"][key]
    for key in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
        assert official[key] == pytest.approx(gold["pope"][key], abs=1e-15)
    theirs = {key.lower(): value for key, value in gold["agla"].items()}
    for key in ("accuracy", "precision", "recall", "f1", "tp", "fp", "tn", "fn"):
        if key in theirs:
            assert agla[key] == pytest.approx(theirs[key], abs=1e-15), key
    yes = next(value for key, value in theirs.items() if key.startswith("yes"))
    assert agla["yes_ratio"] == pytest.approx(yes, abs=1e-15)


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case["answer"]))
def test_an_answer_is_read_as_the_published_scripts_read_it(case):
    assert pope.read(case["answer"], "official") == case["pope"]
    outcome = {("yes", "yes"): "TP", ("yes", "no"): "FN", ("no", "no"): "TN", ("no", "yes"): "FP"}
    for label in ("yes", "no"):
        said = pope.read(case["answer"], "agla", label)
        assert outcome[label, said] == case[f"agla_gold_{label}"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes", "yes"),
        ("NO", "no"),
        ("  yes.", "yes"),
        ("No, there is not.", "no"),
        ("Not at all.", "no"),
        ("Yes, there is no doubt about it.", "yes"),
        ("There is no dog.", "no"),
        ("There is one: yes", "yes"),
        ("The image shows one. No more than that.", None),
        ("It isn't visible.", None),
        ("I know", None),
        ("snow", None),
        ("nothing", None),
        ("", None),
        ("42 !?", None),
        ("... no", "no"),
        ("A dog? Yes", None),
        ("1. yes", "yes"),
    ],
)
def test_the_default_reading_takes_the_first_word_or_a_whole_word_of_the_first_sentence(answer, said):
    assert pope.read(answer) == said


def test_stock_wants_the_bare_word_and_reports_the_labels_yes_share():
    rows = [
        {"question_id": 1, "label": "yes", "answer": "Yes."},
        {"question_id": 2, "label": "yes", "answer": "yes "},
        {"question_id": 3, "label": "no", "answer": "no"},
        {"question_id": 4, "label": "no", "answer": ""},
    ]
    stock = pope_scores.score(rows, "stock")
    assert stock["accuracy"] == 0.5
    assert stock["recall"] == 1.0  # the unreadable answer is left out, which raises recall
    assert stock["yes_ratio"] == 0.5
    assert stock["unreadable"] == 2
    never_yes = [{**row, "answer": "no"} for row in rows]
    assert pope_scores.score(never_yes, "stock")["yes_ratio"] == 0.5


def test_an_unreadable_answer_is_wrong_lowers_recall_and_never_counts_as_yes():
    rows = [
        {"question_id": 1, "label": "yes", "answer": "Yes"},
        {"question_id": 2, "label": "yes", "answer": "banana"},
        {"question_id": 3, "label": "no", "answer": ""},
        {"question_id": 4, "label": "no", "answer": "No"},
    ]
    scores = pope_scores.score(rows)
    assert (scores["accuracy"], scores["precision"], scores["recall"]) == (0.5, 1.0, 0.5)
    assert (scores["unreadable"], scores["yes_ratio"], scores["n"]) == (2, 0.25, 4)
    assert (scores["tp"], scores["fp"], scores["tn"], scores["fn"]) == (1, 0, 1, 1)


def test_always_yes_gives_the_known_constant_scores():
    rows = [{"question_id": i, "label": "yes" if i % 2 else "no", "answer": "Yes"} for i in range(3000)]
    for reading in ("word", "official", "agla", "stock"):
        scores = pope_scores.score(rows, reading)
        assert (scores["tp"], scores["fp"], scores["tn"], scores["fn"]) == (1500, 1500, 0, 0)
        assert scores["f1"] == pytest.approx(2 / 3)


def test_nothing_over_nothing_is_zero():
    assert pope_scores.score([])["accuracy"] == 0.0
    scores = pope_scores.score([{"question_id": 1, "label": "no", "answer": "no"}])
    assert (scores["precision"], scores["recall"], scores["f1"], scores["accuracy"]) == (0.0, 0.0, 0.0, 1.0)


def test_a_reading_that_is_unknown_or_lacks_the_label_is_named():
    with pytest.raises(DataError, match="No reading is called 'wrod'"):
        pope.read("yes", "wrod")
    with pytest.raises(DataError, match="depends on the right answer"):
        pope.read("yes", "agla")


answers = st.sampled_from(GOLDEN["templates"]) | st.text(max_size=12)
rows_of = st.lists(st.tuples(st.sampled_from(["yes", "no"]), answers), min_size=1, max_size=40)


@given(rows_of, st.sampled_from(["word", "official", "agla"]))
def test_the_scores_are_the_textbook_ratios_of_a_recount(pairs, reading):
    rows = [{"question_id": i, "label": label, "answer": text} for i, (label, text) in enumerate(pairs)]
    scores = pope_scores.score(rows, reading)
    said = [pope.read(text, reading, label) for label, text in pairs]
    right = sum(s == label for s, (label, _) in zip(said, pairs, strict=True))
    assert scores["accuracy"] == right / len(pairs)
    assert scores["yes_ratio"] == said.count("yes") / len(pairs)
    gold_yes = [s for s, (label, _) in zip(said, pairs, strict=True) if label == "yes"]
    assert scores["recall"] == (gold_yes.count("yes") / len(gold_yes) if gold_yes else 0.0)
    if scores["precision"] + scores["recall"]:
        harmonic = 2 / (1 / scores["precision"] + 1 / scores["recall"]) if scores["tp"] else 0.0
        assert scores["f1"] == pytest.approx(harmonic)


def test_the_scorers_load_neither_torch_nor_transformers():
    code = (
        "import sys; from lvlm_guard.evals.metrics import chair, pope; "
        "chair.score([{'image_id': 1, 'caption': 'a dog'}], {1: {'dog'}}); "
        "print([m for m in ('torch', 'transformers', 'lmms_eval') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
