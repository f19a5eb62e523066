"""An evaluation against the server has the answers of one in process: our own `eval run`, and stock lmms-eval.

The client needs lmms-eval, which the environment of vLLM need not have: then it runs in that of the checkout, `.venv`.
Versions of transformers differ between the two; answers may not.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from served import KEY

ROOT = Path(__file__).parents[3]
TASKS = ("lvlm_guard_world_pope", "lvlm_guard_world_chair")
NAMES = {"embedded": "greedy", "embedded-agla": "agla", "embedded-vote": "vote"}


@pytest.fixture(scope="module")
def python():
    """A Python that has lmms-eval."""
    if importlib.util.find_spec("lmms_eval"):
        return sys.executable
    other = ROOT / ".venv/bin/python"
    found = other.exists() and subprocess.run([other, "-c", "import lmms_eval"], capture_output=True).returncode == 0
    if not found:
        pytest.skip("no environment here has lmms-eval: make test")
    return str(other)


def run(python, folder, *words):
    done = subprocess.run(
        [python, "-m", *words],
        cwd=folder,
        env=os.environ | {"OPENAI_API_KEY": KEY, "NO_PROXY": "127.0.0.1", "HF_DATASETS_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


TABLE = """
import json, sys, pyarrow.parquet as pq
names = ["task", "split", "item", "decoder", "text", "ended", "score", "censored", "failed"]
print(json.dumps([pq.read_table(f"{folder}/answers.parquet", columns=names).to_pylist() for folder in sys.argv[1:]]))
"""


def test_our_own_evaluation_through_the_server_has_the_answers_and_scores_of_one_in_process(server, python, tmp_path):
    words = ("lvlm_guard", "eval", "run", "--methods", "agla,vote", "--tasks", "world_pope,world_chair", "--json")
    words += ("--limit", "5", "--captions", "16", "--no-controls", "--seeds", "1", "--knob", "agla.beta=0.3")
    here = json.loads(run(python, tmp_path, *words, "--out", "here"))
    there = json.loads(run(python, tmp_path, *words, "--server", server.url, "--concurrency", "32", "--out", "there"))
    read = subprocess.run(
        [python, "-c", TABLE, "here", "there"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    ours, theirs = json.loads(read.stdout)
    assert len(ours) > 180
    same = ("task", "split", "item", "decoder", "text", "ended", "failed")
    assert [[row[name] for name in same] for row in theirs] == [[row[name] for name in same] for row in ours]
    greedy = {
        (row["task"], row["item"]): row["text"] for row in ours if (row["decoder"], row["split"]) == ("greedy", "test")
    }
    for method in ("agla", "vote"):
        assert sum(row["text"] != greedy[row["task"], row["item"]] for row in theirs if row["decoder"] == method) > 3
    for one, other in zip(ours, theirs, strict=True):  # a plain model's scores too, as far as the server tells them
        if one["decoder"] == "greedy" and one["score"] is not None and not other["censored"]:
            assert other["score"] == pytest.approx(one["score"], abs=1e-2)
    scores = [
        {(r["decoder"], r["baseline"], r["task"], r["metric"]): r["value"] for r in told["rows"]}
        for told in (here, there)
    ]
    texts = ("accuracy", "f1", "yes_ratio", "chair_i", "chair_s", "object_recall", "length")
    compared = [row for row in scores[0] if row[3] in texts]
    assert len(compared) > 30
    assert {row: scores[1][row] for row in compared} == {row: scores[0][row] for row in compared}


@pytest.mark.parametrize("name", NAMES)
def test_stock_lmms_eval_s_openai_model_has_the_answers_of_our_model_in_lmms_eval(server, python, tmp_path, name):
    shared = ("--include_path", str(ROOT / "evals/lmms/tasks"), "--tasks", ",".join(TASKS), "--log_samples")
    stock = f"model_version={name},base_url={server.url}/v1,num_concurrent=16"
    ours = f"pretrained=embedded,method={NAMES[name]}"
    run(python, tmp_path, "lmms_eval", "--model", "openai", "--model_args", stock, "--output_path", "stock", *shared)
    ours_too = ("--batch_size", "16", "--output_path", "ours")
    run(python, tmp_path, "lmms_eval", "--model", "lvlm_guard", "--model_args", ours, *ours_too, *shared)
    for task, count in zip(TASKS, (144, 12), strict=True):
        answers = []
        for place in ("stock", "ours"):
            (file,) = (tmp_path / place).rglob(f"*_samples_{task}.jsonl")
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            answers.append({row["doc_id"]: "".join(row["filtered_resps"]).strip() for row in rows})
        assert len(answers[0]) == count
        assert answers[0] == answers[1]
