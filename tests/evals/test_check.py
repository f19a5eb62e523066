"""A check finds what was changed, cut, mixed or never answered, in our runs and in those of lmms-eval."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from runs import pope, saved

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.report.check import Checked, check, sentences
from lvlm_guard.evals.spec.answers import SCHEMA
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.stats.score import score
from lvlm_guard.evals.stats.validity import Allowed

LABELS = ["yes", "no"] * 300
SAID = ["no", "no", *LABELS[2:]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    answers = {"greedy": LABELS, "agla": SAID, "sample": [[x, y] for x, y in zip(LABELS, SAID, strict=True)]}
    return saved(tmp_path / "run", pope(LABELS), answers).folder


def edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_line(path: Path, number: int, change: Callable[[Any], None]) -> None:
    lines = path.read_text().splitlines()
    row = json.loads(lines[number])
    change(row)
    lines[number] = json.dumps(row)
    path.write_text("\n".join(lines) + "\n")


def edit_answers(folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    rows = pq.read_table(folder / "answers.parquet").to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "answers.parquet")


def row_of(results: dict[str, Any], decoder: str, metric: str, baseline: str | None = None) -> dict[str, Any]:
    wanted = (decoder, metric, baseline)
    (found,) = [row for row in results["rows"] if (row["decoder"], row["metric"], row["baseline"]) == wanted]
    return found  # type: ignore[no-any-return]


def test_a_run_as_it_was_written_is_in_order(folder: Path) -> None:
    found = check(folder)
    assert (found.outcome, found.warnings, found.wrong, found.void) == ("ok", [], [], [])
    results = json.loads((folder / "results.json").read_text())
    rows = len(results["rows"]) + len(results["costs"])
    assert f"{rows} rows follow from answers.parquet, all as in results.json." in found.good
    assert any("600 items on 300 pictures" in told for told in found.good)


def test_a_score_that_was_changed_is_named_with_what_it_should_be(folder: Path) -> None:
    edit(folder / "results.json", lambda run: row_of(run, "agla", "accuracy").update(value=0.99))
    found = check(folder)
    assert found.outcome == "wrong"
    assert f"agla pope_random accuracy value is 0.99, and should be {599 / 600}" in found.wrong[0]


@pytest.mark.parametrize("field", ["value", "low", "high", "n", "p", "fixed", "bold", "direction"])
def test_every_column_of_a_difference_is_checked(folder: Path, field: str) -> None:
    edit(folder / "results.json", lambda run: row_of(run, "agla", "accuracy", "greedy").update({field: 7}))
    assert f"agla − greedy pope_random accuracy {field} is 7" in check(folder).wrong[0]


def test_a_last_digit_is_no_error(folder: Path) -> None:
    edit(folder / "results.json", lambda run: row_of(run, "agla", "accuracy").update(value=599 / 600 + 2e-16))
    found = check(folder)
    assert (found.outcome, found.warnings) == ("ok", [])


def test_an_answer_that_was_changed_no_longer_gives_the_scores(folder: Path) -> None:
    edit_answers(folder, lambda rows: rows[5 * 4 + 1].update(text="yes"))
    found = check(folder)
    assert found.outcome == "wrong"
    assert "do not follow from answers.parquet: agla pope_random accuracy value" in found.wrong[0]


def test_a_verdict_that_was_changed_is_told(tmp_path: Path) -> None:
    scores = {name: [1.0 if label == "yes" else -1.0 for label in LABELS] for name in ("greedy", "agla")}
    run = saved(tmp_path, pope(LABELS), {"greedy": LABELS, "agla": SAID}, scores=scores)
    assert check(run.folder).outcome == "ok"
    edit(run.folder / "results.json", lambda content: content["verdicts"][0].update(verdict="ranks better"))
    assert check(run.folder).wrong == ["The verdicts of results.json do not follow from answers.parquet."]


def test_a_row_that_is_missing_or_made_up_is_named(folder: Path) -> None:
    def change(run: dict[str, Any]) -> None:
        run["rows"].remove(row_of(run, "agla", "f1"))
        run["rows"].append(row_of(run, "agla", "recall") | {"decoder": "made-up"})

    edit(folder / "results.json", change)
    assert check(folder).wrong == [
        "2 rows are only in results.json, or only follow from answers.parquet: agla pope_random f1; "
        "made-up pope_random recall."
    ]


def test_a_question_that_was_changed_does_not_fit_the_digest(folder: Path) -> None:
    edit_line(folder / "items.jsonl", 0, lambda row: row.update(prompt="another"))
    assert "world_pope: items.jsonl and asked.json don't belong together: digest" in check(folder).wrong[0]


def test_questions_that_are_not_the_prompt_are_part_of_the_digest(tmp_path: Path) -> None:
    task = pope(LABELS)
    items = [replace(item, prompt=f"{item.prompt} Answer yes or no.", question=item.prompt) for item in task.items]
    run = saved(tmp_path, replace(task, items=items), {"greedy": LABELS})
    assert check(run.folder).wrong == []
    edit_line(run.folder / "items.jsonl", 0, lambda row: row.update(question="another"))
    assert "world_pope: items.jsonl and asked.json don't belong together: digest" in check(run.folder).wrong[0]


def test_an_item_that_is_missing_is_told(folder: Path) -> None:
    path = folder / "items.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    found = check(folder)
    assert found.outcome == "wrong"
    assert "holds 599 of the 600 items of world_pope" in found.wrong[0]


def test_a_cut_file_is_told_and_nothing_raised(folder: Path) -> None:
    path = folder / "items.jsonl"
    path.write_text(path.read_text()[:-20])
    assert "Line 600" in check(folder).wrong[0]


@pytest.mark.parametrize(("field", "value"), [("role", "control"), ("baseline", "sample"), ("decoder", "another")])
def test_answers_under_another_name_or_role_are_told(folder: Path, field: str, value: str) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["decoder"] == "agla":
                row[field] = value

    edit_answers(folder, change)
    found = check(folder)
    assert found.outcome != "ok"
    assert any("the files don't belong together" in told for told in found.wrong)


def test_an_answer_that_is_missing_makes_the_run_void(folder: Path) -> None:
    edit_answers(folder, lambda rows: rows.pop(7))
    found = check(folder)
    assert found.outcome == "void"
    assert "1 of 1200 answers are missing" in found.void[0]


def test_a_void_run_is_void_with_its_reasons(tmp_path: Path) -> None:
    run = saved(tmp_path / "void", pope(LABELS), {"greedy": ["", *LABELS[1:]]})
    found = check(run.folder)
    assert found.outcome == "void"
    assert found.void == ["greedy on world_pope: 1 of 600 answers are empty (first keys: 0)."]
    assert sentences(found)[0] == f"void: {found.void[0]}"
    assert found.wrong == []


def test_what_a_run_allowed_is_allowed_and_a_stricter_share_can_be_asked_for(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", pope(LABELS), {"greedy": ["", *LABELS[1:]]}, allowed=Allowed(empty=0.01))
    found = check(run.folder)
    assert (found.void, found.outcome) == ([], "ok")
    assert "within the allowed share of 0.01" in found.warnings[0]
    assert check(run.folder, allow_empty=0.0).outcome == "void"


def test_a_void_run_that_calls_itself_complete_is_told(tmp_path: Path) -> None:
    run = saved(tmp_path / "void", pope(LABELS), {"greedy": ["", *LABELS[1:]]})
    edit(run.folder / "results.json", lambda content: content.update(void=[]))
    found = check(run.folder)
    assert found.outcome == "void"
    told = "results.json calls the run complete, and its answers make it void: one of the files was changed."
    assert told in found.wrong


def test_a_run_that_has_not_finished_or_is_not_scored_is_told_what_to_do(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "asked.json").write_text(json.dumps({"settings": Settings().to_dict(), "tasks": []}))
    (tmp_path / "items.jsonl").write_text((folder / "items.jsonl").read_text())
    assert "has not finished" in check(tmp_path).wrong[0]
    (folder / "results.json").unlink()
    assert "`lvlm-guard eval score" in check(folder).wrong[0]
    score(folder)
    assert check(folder).outcome == "ok"


def test_scores_of_other_code_are_noted(folder: Path) -> None:
    edit(folder / "results.json", lambda content: content.update(identity="0ther"))
    assert "made by other code (0ther)" in check(folder).warnings[0]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds neither a run"):
        check(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        check(tmp_path / "missing")


@pytest.mark.parametrize("share", [-0.1, 2.0])
def test_an_impossible_share_is_refused(folder: Path, share: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        check(folder, allow_empty=share)


def test_what_was_found_is_json(folder: Path) -> None:
    told = json.loads(json.dumps(check(folder).to_dict()))
    assert told["outcome"] == "ok"
    assert told.keys() >= {"command", "version", "folder", "kind", "good", "warnings", "wrong", "void"}


def test_checking_needs_neither_torch_nor_lmms_eval() -> None:
    heavy = "{'torch', 'transformers', 'lmms_eval'}"
    code = f"import sys, lvlm_guard.evals.report.check; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_a_real_run_of_the_embedded_model_is_in_order(tmp_path: Path) -> None:
    from lvlm_guard.evals.infer.ask import ask

    settings = Settings(tasks=("world_pope", "world_chair"), methods=("agla", "vote"), limit=3, seeds=2, batch=64)
    score(ask(settings, tmp_path / "run", echo=str, workers=1, bar=False))
    found = check(tmp_path / "run")
    assert (found.wrong, found.void) == ([], [])
    edit_answers(tmp_path / "run", lambda rows: rows[0].update(text="no idea"))
    assert "do not follow from answers.parquet" in check(tmp_path / "run").wrong[0]


def lmms_output(place: Path, answers: list[Any], *, wanted: int | None = None, **more: Any) -> Path:
    """Write what lmms-eval 0.7.3 writes for a POPE task: fields as seen in a run of its dummy model."""
    place.mkdir(parents=True, exist_ok=True)
    results = {
        "results": {"pope_adv": {"alias": "pope_adv", "pope_accuracy,none": 0.5}},
        "configs": {"pope_adv": {"task": "pope_adv", "generation_kwargs": {"max_new_tokens": 128}}},
        "n-samples": {"pope_adv": {"original": 600, "effective": wanted or len(answers)}},
        "config": {"model": "openai", "model_args": "", "limit": None},
        "usage": {"budget_exceeded": False},
    } | more
    (place / "20261125_185505_results.json").write_text(json.dumps(results, indent=2))
    lines = [
        {
            "doc_id": i,
            "target": LABELS[i % 600],
            "filtered_resps": text,
            "token_counts": [None],
            "doc_hash": "74",
            "input": "?",
        }
        | ({} if isinstance(text, str) else text)
        for i, text in enumerate(answers)
    ]
    file = place / "20261125_185505_samples_pope_adv.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def found_in(folder: Path, answers: list[Any], **more: Any) -> Checked:
    lmms_output(folder / "org__model", answers, **more)
    return check(folder)


def test_output_of_lmms_eval_with_an_answer_to_every_document_is_in_order(tmp_path: Path) -> None:
    found = found_in(tmp_path, LABELS)
    assert (found.kind, found.outcome) == ("lmms-eval", "ok")
    assert (found.good, found.warnings) == (["openai on pope_adv: 600 documents, each with an answer."], [])


def test_empty_answers_of_lmms_eval_make_it_void(tmp_path: Path) -> None:
    answers = [*LABELS[:598], "", " "]
    found = found_in(tmp_path, answers)
    assert found.void == ["openai on pope_adv: 2 of 600 answers are empty (first keys: 598, 599)."]
    assert check(tmp_path, allow_empty=0.01).outcome == "ok"


def test_failure_strings_of_lmms_eval_make_it_void(tmp_path: Path) -> None:
    failed = "[LMMS_EVAL_REQUEST_FAILED after 5 retries] Error code: 500"
    found = found_in(tmp_path, [failed, *LABELS[1:]])
    assert found.outcome == "void"
    assert '1 of 600 answers failed (0: "[LMMS_EVAL_REQUEST_FAILED after 5 retries] Error code: 500")' in found.void[0]
    assert check(tmp_path, allow_empty=1.0).outcome == "void"


def test_fewer_documents_than_asked_make_it_void(tmp_path: Path) -> None:
    found = found_in(tmp_path, LABELS[:590], wanted=600)
    assert "590 of 600 documents were answered; 10 are missing" in found.void[0]


def test_the_same_word_for_every_document_is_told(tmp_path: Path) -> None:
    found = found_in(tmp_path, ["Yes"] * 600)
    assert found.warnings == ["openai on pope_adv: all 600 answers are yes, whatever was asked."]


def test_a_line_separator_inside_an_answer_is_part_of_it(tmp_path: Path) -> None:
    file = lmms_output(tmp_path, LABELS)
    lines = file.read_text().splitlines()
    file.write_text(
        "\n".join([lines[0].replace('"input": "?"', '"input": "a\u2028b\x85c"'), *lines[1:]]) + "\n", "utf-8"
    )
    assert check(tmp_path).outcome == "ok"


def test_unreadable_answers_are_told(tmp_path: Path) -> None:
    found = found_in(tmp_path, [*(["a dog", "two cats"] * 61), *LABELS[122:]])
    assert "122 of 600 answers can be read as neither yes nor no" in found.warnings[0]


def test_answers_at_the_token_limit_count_as_cut_unless_the_model_says_that_they_ended(tmp_path: Path) -> None:
    full = {"filtered_resps": "yes", "token_counts": [{"input_tokens": 9, "output_tokens": 128}]}
    assert "1 of 600 answers are cut at the limit of 128 tokens" in found_in(tmp_path, [full, *LABELS[1:]]).void[0]
    ended = full | {"token_counts": [{"output_tokens": 128, "ended": True}]}
    assert found_in(tmp_path, [ended, *LABELS[1:]]).outcome == "ok"
    cut = full | {"token_counts": [{"output_tokens": 3, "ended": False}]}
    assert found_in(tmp_path, [cut, *LABELS[1:]]).outcome == "void"


def test_two_runs_in_one_file_are_void(tmp_path: Path) -> None:
    file = lmms_output(tmp_path, LABELS)
    file.write_text(file.read_text() * 2)
    (sentence,) = check(tmp_path).void
    assert "600 documents were answered more than once (first: 0, 1, 2): two runs wrote into one file" in sentence


def test_a_spent_token_budget_is_void(tmp_path: Path) -> None:
    assert "token budget" in found_in(tmp_path, LABELS, usage={"budget_exceeded": True}).void[0]


def test_results_without_answers_are_told_what_to_do(tmp_path: Path) -> None:
    lmms_output(tmp_path, LABELS).unlink()
    found = check(tmp_path)
    assert found.outcome == "wrong"
    assert "Run lmms-eval with --log_samples" in found.wrong[0]


def test_answers_without_results_are_told(tmp_path: Path) -> None:
    lmms_output(tmp_path, LABELS)
    (tmp_path / "20261125_185505_results.json").unlink()
    assert "lmms-eval ended early" in check(tmp_path).wrong[0]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"n-samples": {"t": 3}, "configs": {}}'])
def test_results_that_are_none_are_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "1_results.json").write_text(content)
    found = check(tmp_path)
    assert found.outcome == "wrong"
    assert "can't be read as results of lmms-eval" in found.wrong[0]


@pytest.mark.parametrize("line", ["{", "3", '{"doc_id": 1}'])
def test_samples_that_are_none_are_told_with_their_line(tmp_path: Path, line: str) -> None:
    file = lmms_output(tmp_path, LABELS)
    file.write_text(file.read_text() + line + "\n")
    assert "Line 601" in check(tmp_path).wrong[0]


@pytest.mark.slow
def test_what_the_command_line_of_lmms_eval_writes_is_understood(tmp_path: Path) -> None:
    import datasets
    import lmms_eval

    rows = [
        {"id": i, "question_id": str(i), "question": "Is there a dog?", "answer": LABELS[i], "image_source": str(i)}
        | {"category": "random", "image": Image.new("RGB", (16, 16), (i * 20, 0, 0))}
        for i in range(6)
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "pope.parquet")
    stock = Path(lmms_eval.__file__).parent / "tasks" / "pope" / "pope.yaml"
    (tmp_path / "mini_pope.yaml").write_text(
        f"task: mini_pope\ninclude: {stock}\ndataset_path: parquet\ndataset_name: null\n"
        "dataset_kwargs:\n  data_files:\n    test: pope.parquet\n"
    )
    options = ["--model", "dummy", "--model_args", "response=yes", "--tasks", "mini_pope", "--batch_size", "1"]
    options += ["--include_path", str(tmp_path), "--log_samples", "--output_path", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "lmms_eval", *options],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    found = check(tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (found.outcome, found.good) == ("ok", ["dummy on mini_pope: 6 documents, each with an answer."])
    assert "dummy on mini_pope: all 6 answers are yes, whatever was asked." in found.warnings
