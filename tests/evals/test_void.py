"""Runs whose answers can't be scored, and what a reader is warned of."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.stats.validity import detectable, verdict

GREEDY = {"name": "greedy", "method": None, "seeds": 1, "sampled": False, "knobs": {}}
AGLA = {"name": "agla", "method": "agla", "seeds": 1, "sampled": False, "knobs": {"alpha": 2.0}}
MATCHER = {"name": "matcher", "method": None, "seeds": 1, "sampled": False, "knobs": {}}
SAMPLE = {"name": "sample", "method": None, "seeds": 2, "sampled": True, "knobs": {}}


def sample(key: int, answers: dict[str, list[str]], truth: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "task": "world_pope",
        "kind": "pope",
        "key": str(key),
        "picture": str(key // 2),
        "prompt": f"question {key}",
        "question": f"question {key}",
        "truth": truth or ("yes" if key % 2 else "no"),
        "rows": ["pope_random"],
        "tags": {},
        "answers": answers,
        "ended": {name: [True] * len(texts) for name, texts in answers.items()},
        "failed": {name: [None] * len(texts) for name, texts in answers.items()},
    } | more


def task(n: int, name: str = "world_pope", kind: str = "pope") -> dict[str, Any]:
    return {"name": name, "kind": kind, "n": n, "max_new_tokens": 4}


def good(n: int = 600, **decoders: list[str]) -> list[dict[str, Any]]:
    """Greedy answers all right; others as given for item 0, right elsewhere."""
    rows = []
    for key in range(n):
        right = "yes" if key % 2 else "no"
        answers = {"greedy": [right]}
        for name, first in decoders.items():
            answers[name] = first if key == 0 else [right] * len(first)
        rows.append(sample(key, answers))
    return rows


def test_a_run_whose_answers_are_all_there_is_neither_void_nor_warned_of() -> None:
    found = verdict(good(agla=["yes"]), [task(600)], [GREEDY, AGLA])
    assert found.void == []
    assert found.warnings == []


def test_one_empty_answer_makes_a_run_void_and_is_named() -> None:
    found = verdict(good(agla=["  "]), [task(600)], [GREEDY, AGLA])
    assert found.void == ["agla on world_pope: 1 of 600 answers are empty (first keys: 0)."]


def test_empty_answers_within_the_allowed_share_are_a_warning_and_beyond_it_void() -> None:
    rows = good(100, agla=[""])
    within = verdict(rows, [task(100)], [GREEDY, AGLA], allow_empty=0.01)
    assert within.void == []
    assert "within the allowed share of 0.01" in within.warnings[0]
    beyond = verdict(rows, [task(100)], [GREEDY, AGLA], allow_empty=0.009)
    assert "more than the allowed share of 0.009" in beyond.void[0]


def test_a_failed_answer_is_void_whatever_is_allowed() -> None:
    rows = good(agla=[""])
    rows[0]["failed"]["agla"] = ["HTTP 500"]
    found = verdict(rows, [task(600)], [GREEDY, AGLA], allow_empty=1, allow_truncated=1)
    assert len(found.void) == 1
    assert found.void[0].startswith('agla on world_pope: 1 of 600 answers failed (0: "HTTP 500").')


def test_the_failure_strings_of_lmms_eval_count_as_failed_and_the_first_three_are_shown() -> None:
    rows = [sample(k, {"greedy": ["[LMMS_EVAL_REQUEST_FAILED after 5 retries] timeout"]}) for k in range(5)]
    found = verdict(rows, [task(5)], [GREEDY])
    assert "5 of 5 answers failed" in found.void[0]
    assert found.void[0].count("LMMS_EVAL_REQUEST_FAILED") == 3
    assert all(f"{key}: " in found.void[0] for key in range(3))
    assert "3: " not in found.void[0]


def test_cut_answers_are_void_and_shown_by_their_end_and_their_seed() -> None:
    rows = good(sample=["no", "no"])
    rows[0]["ended"]["sample"] = [True, False]
    rows[0]["answers"]["sample"][1] = "x" * 100 + " the end"
    found = verdict(rows, [task(600)], [GREEDY, SAMPLE])
    assert found.void == [
        "sample on world_pope: 1 of 1200 answers are cut at the limit of 4 tokens "
        f'(0 (seed 1): "...{"x" * 29} the end").'
    ]
    assert verdict(rows, [task(600)], [GREEDY, SAMPLE], allow_truncated=0.01).void == []


def test_items_that_were_not_asked_are_void() -> None:
    found = verdict(good(598), [task(600)], [GREEDY])
    assert found.void == [
        "world_pope: 598 of 600 items were asked; 2 are missing. Give the same command again: it asks for them."
    ]


def test_an_item_that_stands_twice_does_not_stand_for_another() -> None:
    rows = good(599)
    found = verdict([*rows, rows[0]], [task(600)], [GREEDY])
    assert "599 of 600" in found.void[0]


def test_a_decoder_that_answered_only_some_items_is_void() -> None:
    rows = good(agla=["yes"])
    for row in rows[590:]:
        for part in ("answers", "ended", "failed"):
            del row[part]["agla"]
    found = verdict(rows, [task(600)], [GREEDY, AGLA])
    assert found.void == ["agla on world_pope: 10 of 600 answers are missing (first keys: 590, 591, 592)."]


def test_the_matcher_is_not_missed_where_captions_are_asked_for() -> None:
    caption = sample(0, {"greedy": ["a dog"]}, ["dog"], task="world_chair", kind="chair", rows=["chair"])
    found = verdict([caption], [task(1, "world_chair", "chair")], [GREEDY, MATCHER])
    assert found.void == []
    assert "matcher on world_pope: 600 of 600" in verdict(good(), [task(600)], [GREEDY, MATCHER]).void[0]


def test_a_decoder_that_always_says_yes_is_warned_of() -> None:
    rows = [sample(k, {"greedy": ["Yes." if k % 2 else "yes"]}) for k in range(600)]
    found = verdict(rows, [task(600)], [GREEDY])
    assert found.void == []
    assert found.warnings == ['greedy on world_pope: all 600 answers are the same, "yes", whatever was asked.']


def test_unreadable_answers_above_a_fifth_are_warned_of() -> None:
    rows = [
        sample(k, {"greedy": ["a dog" if k < 121 else ["no", "yes"][k % 2]], "agla": ["cat" if k < 120 else "no"]})
        for k in range(600)
    ]
    found = verdict(rows, [task(600)], [GREEDY, AGLA])
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("greedy on world_pope: 121 of 600 answers can be read as neither yes nor no")


def test_a_guard_that_changes_no_answer_is_warned_of() -> None:
    found = verdict(good(agla=["no"]), [task(600)], [GREEDY, AGLA])
    assert "agla answered all 600 items exactly as greedy did: the guard changed nothing" in found.warnings[0]


def test_a_sampled_guard_is_held_against_sampling() -> None:
    guarded = {"name": "agla-sample", "method": "agla", "seeds": 2, "sampled": True, "knobs": {}}
    rows = good(sample=["yes", "no"])
    for row in rows:
        for part in ("answers", "ended", "failed"):
            row[part]["agla-sample"] = list(row[part]["sample"])
    found = verdict(rows, [task(600)], [GREEDY, SAMPLE, guarded])
    assert "exactly as sample did" in found.warnings[0]


def test_a_swept_alpha_of_zero_may_change_nothing() -> None:
    off = AGLA | {"knobs": {"alpha": 0}}
    assert verdict(good(agla=["no"]), [task(600)], [GREEDY, off]).warnings == []


def test_few_questions_come_with_the_difference_that_they_can_show() -> None:
    (warning,) = verdict(good(200), [task(200)], [GREEDY]).warnings
    assert warning == (
        "world_pope: 200 questions in pope_random are few. Of accuracy differences, if 10% of the answers change, only "
        "one of 6.3 points or more would be found with 80 % power, at best."
    )
    assert "none would be found" in verdict(good(20), [task(20)], [GREEDY]).warnings[0]


@pytest.mark.parametrize(("n", "points"), [(500, 4.0), (3000, 1.6), (9000, 0.9)])
def test_detectable_differences_are_those_of_the_specification(n: int, points: float) -> None:
    assert round(100 * detectable(n), 1) == points


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_allowed_shares_lie_between_0_and_1(share: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        verdict([], [], [], allow_truncated=share)


def test_the_verdict_needs_neither_torch_nor_lmms_eval() -> None:
    heavy = "{'torch', 'transformers', 'lmms_eval'}"
    code = f"import sys, lvlm_guard.evals.stats.validity; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
