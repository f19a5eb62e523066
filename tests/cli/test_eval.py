"""`lvlm-guard eval` as a user types it: files, exit codes, and messages that say what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer

Run = Callable[..., Any]

SMALL = ("--limit", 2, "--captions", 3, "--seeds", 1, "--workers", 1, "--batch", 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two methods."""
    from lvlm_guard.evals.infer.ask import ask
    from lvlm_guard.evals.report.page import write_report
    from lvlm_guard.evals.spec.settings import Settings
    from lvlm_guard.evals.stats.score import score

    out = tmp_path_factory.mktemp("run")
    settings = Settings(limit=2, captions=3, seeds=1, batch=16, methods=("agla", "vote"), controls=False)
    ask(settings, out, echo=lambda _: None, bar=False, workers=1)
    score(out)
    write_report(out)
    return out


@pytest.mark.slow
def test_run_asks_scores_and_reports_and_each_can_be_done_again_alone(run: Run, tmp_path: Path) -> None:
    small = (*SMALL, "--methods", "vote", "--out", tmp_path)
    made = run("eval", "run", *small)
    assert made.code == 0
    assert "world_pope: embedded, test split" in made.out
    assert "They do not show that a method helps a real model" in made.out.replace("\n", " ")
    assert "--limit 2: the first pictures of each task only" in made.out.replace("\n", " ")
    for name in ("answers.parquet", "costs.parquet", "items.jsonl", "results.json", "report.html"):
        assert (tmp_path / name).stat().st_size > 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    answers, results = ((tmp_path / name).read_bytes() for name in ("answers.parquet", "results.json"))
    again = run("eval", "run", *small, "--json")
    assert again.object["command"] == "eval run"
    assert {"method", "task", "metric", "value", "low", "high"} <= again.object["rows"][0].keys()
    assert "Asking" not in again.err
    (tmp_path / "results.json").unlink()
    (tmp_path / "report.html").unlink()
    asked = run("eval", "ask", *small, "--json")
    assert asked.object | {"version": ""} == {
        "command": "eval ask",
        "version": "",
        "folder": str(tmp_path),
        "whole": True,
        "failed": 0,
    }
    assert run("eval", "score", tmp_path).code == 0
    assert run("eval", "report", tmp_path).code == 0
    assert (tmp_path / "answers.parquet").read_bytes() == answers
    assert (tmp_path / "results.json").read_bytes() == results
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page


@pytest.mark.slow
def test_run_is_not_shared_out_by_torchrun(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    made = run("eval", "run", *SMALL, "--out", tmp_path)
    assert made.code == 2
    assert "start `eval ask` by it" in made.err.replace("\n", " ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--methods", "algo"), 2, "Did you mean 'agla'"),
        (("--tasks", "world_poppe"), 2, "Did you mean 'world_pope'"),
        (("--tasks", ","), 2, "names nothing"),
        (("--knob", "agla.alfa=1"), 2, "alpha"),
        (("--knob", "alpha=1"), 2, "METHOD.NAME=VALUE"),
        (("--knob", "pai.alpha=1"), 2, "none of the methods of this run"),
        (("--sweep", "alpha=1,2"), 1, "validation split"),
        (("--sweep", "gamma=1,2", "--split", "val"), 2, "none of --methods"),
        (("--methods", "all", "--sweep", "gamma=1", "--split", "val"), 2, "none of --methods all has this knob"),
        (("--sweep", "1,2", "--split", "val"), 2, "NAME=VALUE"),
        (("--sweep", "alpha=1,x", "--split", "val"), 2, "alpha is 'x'"),
        (("--tasks", "pope", "--questions", "/none.json", "--images", "."), 1, "/none.json"),
        (("--tasks", "hallusion_bench_image"), 1, "judge"),
        (("--fail-if", "accuracy<<1"), 2, "accuracy"),
        (("--server", "http://127.0.0.1:9/v1", "--model", "m"), 1, "127.0.0.1:9"),
    ],
)
def test_what_can_not_be_run_says_what_to_do(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    made = run("eval", "run", *SMALL, "--out", tmp_path / "out", *arguments)
    assert (made.code, made.out) == (code, "")
    assert said in made.err.replace("\n", " ")


def test_a_void_run_exits_3_and_prints_no_score(run: Run, tmp_path: Path) -> None:
    small = ("--tasks", "world_chair", "--methods", "vote", "--no-controls", "--max-new-tokens", 2)
    made = run("eval", "run", *SMALL, *small, "--out", tmp_path)
    assert made.code == 3
    assert "CHAIR_i" not in made.out
    assert "cut at the limit of 2 tokens" in made.err.replace("\n", " ")
    assert run("eval", "check", tmp_path).code == 3
    allowed = run("eval", "run", *SMALL, *small, "--out", tmp_path, "--allow-truncated", 1)
    assert allowed.code == 0
    assert "--allow-truncated 1" in allowed.out


def test_a_rule_that_holds_exits_1(run: Run, tmp_path: Path, folder: Path) -> None:
    made = run("eval", "compare", folder, folder, "--a", "greedy", "--b", "agla", "--fail-if", "accuracy_diff>-1")
    assert made.code == 1
    assert "--fail-if" in made.err
    made = run("eval", "compare", folder, folder, "--a", "greedy", "--b", "agla", "--fail-if", "accuracy_diff<-1")
    assert made.code == 0
    assert "agla" in made.out


@pytest.mark.slow
def test_compare_prints_one_object_and_refuses_other_questions(run: Run, tmp_path: Path, folder: Path) -> None:
    made = run("eval", "compare", folder, folder, "--json")
    assert {row["value"] for row in made.object["rows"] if row["baseline"]} == {0.0}
    other = ("--no-controls", "--limit", 1, "--methods", "agla,vote", "--out", tmp_path)
    run("eval", "ask", *SMALL, *other)
    run("eval", "score", tmp_path)
    other = run("eval", "compare", folder, tmp_path)
    assert other.code == 1
    assert "did not ask the same" in other.err.replace("\n", " ")


def test_check_finds_a_changed_answer(run: Run, tmp_path: Path, folder: Path) -> None:
    assert run("eval", "check", folder).code == 0
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    table = pq.read_table(copy / "answers.parquet")
    texts = table["text"].to_pylist()
    texts[0] = "no" if texts[0] == "yes" else "yes"
    column = table.schema.get_field_index("text")
    pq.write_table(table.set_column(column, table.schema.field("text"), [texts]), copy / "answers.parquet")
    made = run("eval", "check", copy)
    assert made.code == 1
    assert "wrong:" in made.out
    assert run("eval", "check", copy, "--json").object["outcome"] == "wrong"


def test_the_report_is_written_anew_from_the_files_alone(run: Run, tmp_path: Path, folder: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    before = (copy / "report.html").read_text()
    (copy / "report.html").unlink()
    assert run("eval", "report", copy).code == 0
    assert (copy / "report.html").read_text() == before


def test_export_and_localize_write_for_other_tools(run: Run, tmp_path: Path, folder: Path) -> None:
    made = run("eval", "export", folder, "--decoder", "agla", "--to", tmp_path / "agla.tsv")
    assert made.code == 0
    assert (tmp_path / "agla.tsv").read_text().startswith("index\tquestion\tanswer\tprediction\tcategory\n")
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    row = {"question_id": 1, "image": "a.png", "text": "Is there a dog in the image?", "label": "no"}
    (tmp_path / "q.json").write_text(json.dumps(row) + "\n")
    made = run("eval", "localize", "pope_adv", tmp_path / "q.json", "--images", tmp_path, "--out", tmp_path / "tasks")
    assert made.code == 0
    assert f"--include_path {tmp_path / 'tasks'} --tasks pope_adv_local" in made.out


def test_folders_without_a_run_are_told_what_to_give(run: Run, tmp_path: Path) -> None:
    for command in ("check", "report"):
        made = run("eval", command, tmp_path / "none")
        assert made.code == 1
        assert "is no folder" in made.err


def test_a_reproduced_cell_prints_what_was_measured(run: Run, tmp_path: Path) -> None:
    grid = ("--model", "embedded", "--only", "chair,paper", "--limit", 2, "--seeds", 1, "--workers", 1)
    made = run("eval", "reproduce", "agla", *grid, "--out", tmp_path)
    assert made.code == 0
    assert "CHAIR, embedded: measured" in made.out
    assert "Nothing published is set beside it" in " ".join(made.out.split())


def test_a_swept_value_may_hold_an_equals_sign():
    from lvlm_guard.evals.commands.asking import _sweep

    assert _sweep(["matcher=a=b,c", "alpha=1,2"], ["agla"]) == {"matcher": ("a=b", "c"), "alpha": (1.0, 2.0)}


@pytest.mark.parametrize("method", ["agla+rudder", "rudder+agla"])
def test_a_sweep_is_of_the_part_of_a_combination_that_assembles(method: str) -> None:
    from lvlm_guard.evals.commands.asking import _sweep

    assert _sweep(["beta=0.1,0.5"], [method]) == {"beta": (0.1, 0.5)}
    with pytest.raises(typer.BadParameter, match="--sweep floor: none of --methods"):
        _sweep(["floor=1"], [method])
