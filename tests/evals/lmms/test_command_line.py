"""Stock lmms-eval on the command line, as users have it: the answers of `lvlm-guard eval run`."""

import json
import os
import subprocess
import sys

import pytest

from lvlm_guard.evals.lmms import TASKS

POPE, CHAIR = "lvlm_guard_world_pope", "lvlm_guard_world_chair"
AGLA = "pretrained=embedded,method=agla,alpha=2"
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def lmms_eval(out, *arguments, start=(sys.executable,), **environment):
    command = [*start, "-m", "lmms_eval", "--model", "lvlm_guard", "--include_path", str(TASKS)]
    command += ["--output_path", str(out), "--log_samples", "--device", "cpu", *arguments]
    done = subprocess.run(
        command, env={**os.environ, **QUIET, **environment}, capture_output=True, text=True, timeout=280
    )
    return done.stdout + done.stderr


def answers(out, task):
    (path,) = out.rglob(f"*_samples_{task}.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["doc_id"]: row for row in rows}


def text(row):
    """Return an answer; lmms-eval leaves `resps` out where the filters changed nothing."""
    found = row.get("resps", row["filtered_resps"])
    while isinstance(found, list):
        (found,) = found
    return found


def test_the_command_line_gives_the_answers_of_our_own_run(tmp_path):
    from lvlm_guard.evals.run import run
    from lvlm_guard.evals.settings import Settings

    settings = Settings(methods=("agla",), controls=False, limit=1, captions=6, batch=8, device="cpu")
    saved = run(settings, tmp_path / "own", workers=1, report=False, echo=lambda line: None)
    told = lmms_eval(tmp_path / "stock", "--model_args", AGLA, "--tasks", f"{POPE},{CHAIR}", "--limit", "18")
    for theirs, ours in ((POPE, "world_pope"), (CHAIR, "world_chair")):
        rows = answers(tmp_path / "stock", theirs)
        expected = {s["key"]: s["answers"]["agla"][0] for s in saved.samples if s["task"] == ours}
        assert {key: text(rows[int(key)]) for key in expected} == expected, told[-2000:]
        assert len(expected) >= 6
        costs = [row["token_counts"][0] for row in rows.values()]
        assert all(cost["seconds"] > 0 and cost["forwards"] > 0 for cost in costs)
    assert "accuracy" in told
    assert "chair_s" in told


@pytest.mark.slow
def test_an_error_is_told_and_leaves_no_scores(tmp_path):
    """lmms-eval itself exits 0 after any error, unless --verbosity DEBUG."""
    told = lmms_eval(tmp_path, "--model_args", f"{AGLA},bta=0.1", "--tasks", POPE, "--limit", "1")
    assert "Did you mean 'beta'?" in told
    assert not list(tmp_path.rglob("*samples*"))


@pytest.mark.slow
def test_two_processes_give_the_answers_of_one(tmp_path):
    """On the CPU with torchrun: `accelerate launch --cpu --num_processes 2` starts one process only."""
    arguments = ("--model_args", f"{AGLA},store={tmp_path / 'store'}", "--tasks", f"{POPE},{CHAIR}", "--limit", "7")
    two = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29617")
    told = lmms_eval(tmp_path / "two", *arguments, start=two, ACCELERATE_USE_CPU="true")
    assert len(list((tmp_path / "store").glob("*.jsonl"))) == 2, told[-3000:]
    alone = ("--model_args", AGLA, *arguments[2:])
    lmms_eval(tmp_path / "one", *alone)
    for task in (POPE, CHAIR):
        one, both = (answers(tmp_path / name, task) for name in ("one", "two"))
        assert {doc: text(row) for doc, row in one.items()} == {doc: text(row) for doc, row in both.items()}
        assert sorted(one) == list(range(7))
