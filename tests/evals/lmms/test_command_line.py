"""Stock lmms-eval on the command line, as users have it: the answers of `lvlm-guard eval run`."""

import json
import os
import shutil
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from lvlm_guard.embedded.questions import pope_set
from lvlm_guard.embedded.world import question
from lvlm_guard.evals.infer.ask import ask
from lvlm_guard.evals.lmms import TASKS
from lvlm_guard.evals.lmms.localize import localize
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.world import LABELS, NOUNS, picture

POPE, CHAIR, LOCAL = "lvlm_guard_world_pope", "lvlm_guard_world_chair", "pope_adv_local"
AGLA = "pretrained=embedded,method=agla,alpha=2"
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def command_of(out, *arguments, start=(sys.executable,), include=TASKS):
    command = [*start, "-m", "lmms_eval", "--model", "lvlm_guard", "--include_path", str(include)]
    return [*command, "--output_path", str(out), "--log_samples", "--device", "cpu", *arguments]


def lmms_eval(out, *arguments, environment=(), **how):
    around = {**os.environ, **QUIET, **dict(environment)}
    command = command_of(out, *arguments, **how)
    done = subprocess.run(command, env=around, capture_output=True, text=True, timeout=280)
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


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A folder with the stock task `pope_adv` over one's own files, and the embedded world's captions."""
    folder = tmp_path_factory.mktemp("local")
    drawn, questions = pope_set("test", 2)
    fields = []
    for number, q in enumerate(questions, 1):
        if q.mode == "adversarial":
            picture(drawn, q.scene).save(folder / f"{q.scene}.png")
            said = {"text": question(NOUNS[q.asked]), "label": LABELS[q.present]}
            fields.append({"question_id": number, "image": f"{q.scene}.png"} | said)
    (folder / "pope.json").write_text("\n".join(map(json.dumps, fields)))
    localize("pope_adv", folder / "pope.json", folder, images=folder)
    for path in (TASKS / f"{CHAIR}.yaml", TASKS / "world_chair.parquet"):
        shutil.copy(path, folder)
    return folder


@pytest.mark.slow
def test_the_command_line_gives_the_answers_of_our_own_run(local, tmp_path):
    settings = Settings(
        tasks=(LOCAL, CHAIR), include=(str(local),), methods=("agla",), controls=False, batch=8, device="cpu"
    )
    own = pq.read_table(ask(settings, tmp_path / "own", workers=1, echo=lambda line: None) / "answers.parquet")
    told = lmms_eval(tmp_path / "stock", "--model_args", AGLA, "--tasks", f"{LOCAL},{CHAIR}", include=local)
    for task, documents in ((LOCAL, 12), (CHAIR, 12)):
        rows = answers(tmp_path / "stock", task)
        asked = (row for row in own.to_pylist() if (row["task"], row["decoder"]) == (task, "agla"))
        expected = {int(row["item"]): row["text"] for row in asked}
        assert {doc: text(row) for doc, row in rows.items()} == expected, told[-2000:]
        assert len(expected) == documents
        costs = [row["token_counts"][0] for row in rows.values()]
        assert all(cost["seconds"] > 0 and cost["forwards"] > 0 for cost in costs)
    assert "pope_accuracy" in told
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
    told = lmms_eval(tmp_path / "two", *arguments, start=two, environment={"ACCELERATE_USE_CPU": "true"})
    assert len(list((tmp_path / "store").glob("*.jsonl"))) == 2, told[-3000:]
    alone = ("--model_args", AGLA, *arguments[2:])
    lmms_eval(tmp_path / "one", *alone)
    for task in (POPE, CHAIR):
        one, both = (answers(tmp_path / name, task) for name in ("one", "two"))
        assert {doc: text(row) for doc, row in one.items()} == {doc: text(row) for doc, row in both.items()}
        assert sorted(one) == list(range(7))


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_with_the_same_answers(tmp_path):
    store = tmp_path / "store"
    arguments = ("--model_args", f"{AGLA},store={store}", "--tasks", POPE)
    command = command_of(tmp_path / "killed", *arguments)
    around = {**os.environ, **QUIET}
    process = subprocess.Popen(command, env=around, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while sum(path.read_bytes().count(b"\n") for path in store.glob("*.jsonl")) < 5:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    (path,) = store.glob("*.jsonl")
    before = path.read_bytes()
    assert before.count(b"\n") < 140
    lmms_eval(tmp_path / "again", *arguments)
    assert list(store.glob("*.jsonl")) == [path], "the code was edited between the two runs"
    assert path.read_bytes().startswith(before), "what was answered is kept"
    asked = [json.loads(line)["doc_id"] for line in path.read_bytes().splitlines() if line.endswith(b"}")]
    assert sorted(asked) == list(range(144)), "and is not asked again"
    lmms_eval(tmp_path / "alone", "--model_args", AGLA, "--tasks", POPE)
    again, alone = (answers(tmp_path / name, POPE) for name in ("again", "alone"))
    assert {doc: text(row) for doc, row in again.items()} == {doc: text(row) for doc, row in alone.items()}
    assert len(again) == 144
