"""Runs whose answers can't be scored, and what a reader is warned of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scoring

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.infer.ask import ask
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.stats.results import find
from lvlm_guard.evals.stats.score import score
from lvlm_guard.evals.stats.validity import Allowed, detectable

TRUTH = ("no", "yes")
AGLA: dict[str, Any] = {"method": "agla", "knobs": {"alpha": 2.0}}


def good(n: int = 600, first: dict[str, str | list[str]] | None = None, row: str = "pope_random") -> tuple[Any, Any]:
    """Items, and texts that are all right, but for the answers to item 0; greedy errs on item 1."""
    items = [scoring.item(k, k // 2, TRUTH[k % 2], [row]) for k in range(n)]
    texts: dict[str, list[Any]] = {"greedy": [TRUTH[k % 2] if k != 1 else "no" for k in range(n)]}
    for name, said in (first or {}).items():
        seeds = said if isinstance(said, list) else [said]
        texts[name] = [seeds if k == 0 else [TRUTH[k % 2]] * len(seeds) for k in range(n)]
    return items, texts


def judged(items: Any, texts: Any, **more: Any) -> dict[str, Any]:
    return scoring.of_texts(items, texts, {"agla": AGLA, "matcher": {"role": "matcher"}}, draws=10, **more)


def changed(items: Any, texts: Any, change: dict[tuple[str, str, int], dict[str, Any] | None], **more: Any) -> Any:
    """Score texts of which some answers, (decoder, item, seed), are changed, or are not there."""
    answers = []
    for name, said in texts.items():
        for item, one in zip(items, said, strict=True):
            for seed, text in enumerate([one] if isinstance(one, str) else one):
                new = change.get((name, item["item"], seed), {})
                if new is not None:
                    answers.append(vars(scoring.answer(item, name, text, seed=seed)) | new)
    seeds = {name: 1 if isinstance(said[0], str) else len(said[0]) for name, said in texts.items()}
    decoders = [scoring.decoder(name, seeds=seeds[name]) for name in texts]
    return scoring.scored(items, answers, decoders, draws=10, **more)


def test_a_run_whose_answers_are_all_there_is_neither_void_nor_warned_of() -> None:
    found = judged(*good(first={"agla": "yes"}))
    assert (found["void"], found["warnings"]) == ([], [])


def test_one_empty_answer_makes_a_run_void_and_is_named_and_there_are_no_scores() -> None:
    found = judged(*good(first={"agla": "  "}))
    assert found["void"] == ["agla on quiz: 1 of 600 answers are empty (first keys: 0)."]
    assert (found["rows"], found["verdicts"]) == ([], [])


def test_empty_answers_within_the_allowed_share_are_a_warning_and_beyond_it_void() -> None:
    within = judged(*good(100, {"agla": ""}), allowed=Allowed(empty=0.01))
    assert within["void"] == []
    assert "within the allowed share of 0.01" in within["warnings"][0]
    beyond = judged(*good(100, {"agla": ""}), allowed=Allowed(empty=0.009))
    assert "more than the allowed share of 0.009" in beyond["void"][0]


def test_a_request_that_failed_costs_its_item_and_not_the_run() -> None:
    items, texts = good(first={"agla": "yes"})
    found = changed(items, texts, {("agla", "0", 0): {"failed": "HTTP 400: bad request", "text": ""}})
    assert found["void"] == []
    assert found["warnings"] == [
        'agla on quiz: 1 of 600 answers failed (0: "HTTP 400: bad request"). Their items are left out of all scores.'
    ]
    for name in ("greedy", "agla"):  # still paired
        assert find(found["rows"], name, "pope_random", "accuracy")["n"] == 599


def test_more_than_the_tolerated_share_of_failures_is_void_whatever_else_is_allowed() -> None:
    items, texts = good(first={"agla": "yes"})
    failures = {("agla", str(k), 0): {"failed": "HTTP 500"} for k in range(7)}
    found = changed(items, texts, failures, allowed=Allowed(1, 1))
    assert len(found["void"]) == 1
    assert found["void"][0].startswith('agla on quiz: 7 of 600 answers failed (0: "HTTP 500"; 1: "HTTP 500"; 2:')
    assert found["void"][0].endswith("Give the same command again: it asks for them.")
    assert changed(items, texts, failures, allowed=Allowed(failed=0.02))["void"] == []
    alone = changed(items[:1], {"greedy": ["no"]}, {("greedy", "0", 0): {"failed": "HTTP 500"}})
    assert "1 of 1 answers failed" in alone["void"][0]


def test_the_failure_strings_of_lmms_eval_count_as_failed_and_the_first_three_are_shown() -> None:
    items, _ = good(5)
    found = judged(items, {"greedy": [" [LMMS_EVAL_REQUEST_FAILED after 5 retries] timeout"] * 5})
    assert "5 of 5 answers failed" in found["void"][0]
    assert found["void"][0].count("LMMS_EVAL_REQUEST_FAILED") == 3


def test_cut_answers_are_void_and_shown_by_their_end_and_their_seed() -> None:
    items, texts = good(first={"sample": ["no", "no"]})
    cut = {("sample", "0", 1): {"ended": False, "text": "x" * 100 + " the end"}}
    found = changed(items, texts, cut)
    assert found["void"] == [
        f'sample on quiz: 1 of 1200 answers are cut at the limit of 4 tokens (0 (seed 1): "...{"x" * 29} the end").'
    ]
    assert changed(items, texts, cut, allowed=Allowed(truncated=0.01))["void"] == []


def test_missing_answers_are_void_and_named() -> None:
    items, texts = good(first={"agla": "yes", "sample": ["no", "no"]})
    lost = {("agla", str(k), 0): None for k in range(590, 600)} | {("sample", str(k), 1): None for k in range(600)}
    assert changed(items, texts, lost)["void"] == [
        "agla on quiz: 10 of 600 answers are missing (first keys: 590, 591, 592).",
        "sample on quiz: 600 of 1200 answers are missing (first keys: 0, 1, 2).",
    ]


def test_what_answers_yes_and_no_alone_is_not_missed_where_captions_are_asked_for() -> None:
    item = scoring.item(0, 0, ["dog"], ["chair"])
    told = [scoring.decoder("greedy"), scoring.decoder("matcher", role="matcher", yes_no_only=True)]
    answers = [scoring.answer(item, "greedy", "a dog")]
    assert scoring.scored([item], answers, told, kind="chair", task={"vocabulary": ["dog"]}, draws=10)["void"] == []
    items, texts = good()
    said = [scoring.answer(i, "greedy", text) for i, text in zip(items, texts["greedy"], strict=True)]
    assert "matcher on quiz: 600 of 600 answers are missing" in scoring.scored(items, said, told, draws=10)["void"][0]


def test_calibration_items_are_asked_of_plain_decoders_and_controls_alone() -> None:
    items, texts = good(first={"agla": "yes", "prompt-no": "no"})
    val = [scoring.item(k, f"v{k}", TRUTH[k % 2], ["pope_random"], split="val") for k in range(20)]
    answers = [
        scoring.answer(item, name, text[0] if isinstance(text, list) else text)
        for name, said in texts.items()
        for item, text in zip(items, said, strict=True)
    ]
    answers += [scoring.answer(item, "greedy", item["truth"]) for item in val]
    told = [scoring.decoder("greedy"), scoring.decoder("agla"), scoring.decoder("prompt-no", role="control")]
    found = scoring.scored([*items, *val], answers, told, draws=10)
    assert found["void"] == ["prompt-no on quiz (calibration): 20 of 20 answers are missing (first keys: 0, 1, 2)."]


def test_a_decoder_that_always_says_yes_is_warned_of() -> None:
    items, _ = good()
    found = judged(items, {"greedy": ["Yes." if k % 2 else "yes" for k in range(600)]})
    assert found["void"] == []
    assert found["warnings"] == ["greedy on quiz: all 600 answers are yes, whatever was asked."]


def test_unreadable_answers_above_a_fifth_are_warned_of() -> None:
    items, _ = good()
    told = {"greedy": ["a dog" if k < 121 else TRUTH[k % 2] for k in range(600)]}
    told["agla"] = ["cat" if k < 120 else "no" for k in range(600)]
    (warning,) = judged(items, told)["warnings"]
    assert warning.startswith("greedy on quiz: 121 of 600 answers can be read as neither yes nor no")
    assert '(0: "a dog"; 1: "a dog"; 2: "a dog")' in warning


def idle(**knobs: Any) -> list[str]:
    items, texts = good()
    texts["vote"] = list(texts["greedy"])
    warnings: list[str] = scoring.of_texts(items, texts, {"vote": {"method": "vote"} | knobs}, draws=10)["warnings"]
    return warnings


def test_a_guard_that_changes_no_answer_is_warned_of_vote_too_whose_alpha_is_zero() -> None:
    for knobs in ({"alpha": 2.0}, {"alpha": 0.0}, {}):
        (warning,) = idle(knobs=knobs)
        assert "vote answered all 600 items exactly as greedy did: the guard changed nothing" in warning


def test_a_swept_alpha_of_zero_may_change_nothing() -> None:
    assert idle(knobs={"alpha": 0}, point={"alpha": 0}) == []


def test_a_sampled_guard_is_held_against_sampling() -> None:
    items, texts = good(first={"sample": ["yes", "no"], "sample-agla": ["yes", "no"]})
    assert "exactly as sample did" in judged(items, texts)["warnings"][0]


def test_few_questions_come_with_the_difference_that_they_can_show() -> None:
    (warning,) = judged(*good(200))["warnings"]
    assert warning == (
        "quiz: 200 questions in pope_random are few. Of accuracy differences, if 10% of the answers change, only "
        "one of 6.3 points or more would be found with 80 % power, at best."
    )
    assert "none would be found" in judged(*good(20))["warnings"][0]


@pytest.mark.parametrize(("n", "points"), [(500, 4.0), (3000, 1.6), (9000, 0.9)])
def test_detectable_differences_are_those_of_the_specification(n: int, points: float) -> None:
    assert round(100 * detectable(n), 1) == points


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_allowed_shares_lie_between_0_and_1(share: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        Allowed(truncated=share)


def test_a_vote_that_finds_nothing_to_vote_on_is_reported_end_to_end_and_one_that_finds_some_is_not(
    tmp_path: Path,
) -> None:
    # alpha = 0 is vote's default, and no sign that it was meant to do nothing
    settings = Settings(tasks=("world_chair",), methods=("vote",), controls=False, captions=6, batch=6)
    told = {}
    for name, knobs in (("idle", {"vote": {"objects": ("spaceship", "teapot")}}), ("busy", {})):
        folder = ask(replace(settings, knobs=knobs), tmp_path / name, echo=lambda _: None, bar=False, workers=1)
        told[name] = [text for text in score(folder)["warnings"] if "changed nothing" in text]
    assert told["busy"] == []
    (warning,) = told["idle"]
    assert warning.startswith("vote answered all 6 items exactly as greedy did: the guard changed nothing.")
