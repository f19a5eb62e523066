"""The card and the page of an adapter say what was measured, and never that it is guarded."""

import copy
from dataclasses import asdict

import pytest

from lvlm_guard.adapters.distill.lessons import Lessons, Recipe
from lvlm_guard.adapters.distill.run import card, side_by_side, write_report


def row(method, task, metric, value, low=None, high=None):
    return {"method": method, "task": task, "metric": metric, "value": value, "low": low, "high": high, "n": 9}


COUNTED = {"pictures": 7, "failed": 1, "answers": 99, "yes": 20, "open": 30, "changed": 11, "tokens": 300}
REPORT = {
    "version": "0.1.0",
    "lessons": asdict(Lessons()),
    "knobs": {"lam": 1.0},
    "recipe": asdict(Recipe()),
    "seeds": [0, 1],
    "answers": {"train": COUNTED, "held-out": COUNTED},
    "by_seed": [
        {"seed": seed, "task": "chair", "metric": "chair_i", "value": 0.1 + seed / 100} for seed in (0, 1)
    ],
    "rows": [
        row("greedy", "chair", "chair_i", 0.3, 0.25, 0.35),
        row("distilled", "chair", "chair_i", 0.2, 0.15, 0.25),
        row("vote", "chair", "chair_i", 0.1, 0.05, 0.15),
        row("distilled-greedy", "chair", "chair_i", -0.1, -0.12, -0.08),
        row("greedy", "held_out_question", "agreement", 0.91),
        row("distilled", "held_out_question", "agreement", 0.97),
        row("distilled", "untouched_question", "changed", 0.012),
        row("distilled", "untouched_question", "kl", 0.0034),
    ],
}  # fmt: skip


def test_each_measure_stands_once_with_plain_distilled_guarded_and_the_difference():
    lines = {what: [one and one["value"] for one in rest] for what, *rest in side_by_side(REPORT)}
    assert lines["CHAIR_i"] == [0.3, 0.2, 0.1, -0.1]
    assert lines["answers word for word as the guarded model: questions"] == [0.91, 0.97, None, None]
    assert lines["answers changed where the guard had no say: questions"] == [None, 0.012, None, None]
    assert len(lines) == 4


def test_the_card_says_what_the_adapter_is_and_is_not():
    told = card(REPORT)
    assert told.startswith("---\nlibrary_name: peft\n")
    assert "| CHAIR_i | 0.300 | 0.200 | 0.100 | -0.100 [-0.120, -0.080] |" in told
    assert "A tuned model" in told
    assert "**Nothing guards its answers any more**" in told
    assert "99 answers, of which the\n  guard had changed 11" in told


@pytest.mark.parametrize("projector", [False, True])
def test_the_card_offers_vllms_lora_only_where_all_of_the_adapter_is_served(projector):
    report = copy.deepcopy(REPORT)
    report["recipe"]["projector"] = projector
    told = card(report)
    assert ("--lora-modules distilled=THIS_FOLDER" in told) is not projector
    assert ("serve the merged model" in told) is projector


def test_the_page_holds_the_table_each_seed_and_the_settings(tmp_path):
    path = write_report(tmp_path, REPORT, "lvlm-guard train distill --seeds 0,1")
    page = path.read_text()
    assert path == tmp_path / "report.html"
    for text in ("CHAIR_i", "0.200", "−0.100", "seed 1", "0.110", "held-out", "lvlm-guard train distill --seeds 0,1"):
        assert text in page
    assert "Nothing guards its answers" in page
