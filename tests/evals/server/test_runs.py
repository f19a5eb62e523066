"""A run through a server: the answers of the model in process, in one order, and nothing lost whoever ends it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import replace
from typing import Any

import pytest
from server_faults import after, once, status, without_proof
from server_runs import SMALL, go, quiet, rows
from typer.testing import CliRunner

from lvlm_guard.cli.app import app
from lvlm_guard.evals.errors import RunError
from lvlm_guard.evals.infer.ask import ask
from lvlm_guard.evals.infer.store import Job

UNMEASURED = ("forwards", "local_forwards", "local_tokens", "masks")
OWN = (*UNMEASURED, "score", "mass", "censored", "proof")


@pytest.mark.slow
def test_a_run_through_a_server_has_the_answers_of_a_run_in_process(served, tmp_path):
    both = replace(SMALL, tasks=("world_pope", "world_chair"), methods=("agla", "vote"), limit=2, batch=8)
    ours = rows(ask(both, tmp_path / "in", echo=quiet, bar=False, workers=1))
    served.most_at_once = 0
    theirs = rows(go(served, tmp_path / "through", both, concurrency=8))
    assert [{k: v for k, v in row.items() if k not in OWN} for row in theirs] == [
        {k: v for k, v in row.items() if k not in OWN} for row in ours
    ]
    assert len({row["text"] for row in theirs if row["task"] == "world_chair"}) > 2
    assert 4 < served.most_at_once <= 8
    assert {row[name] for row in theirs for name in UNMEASURED} == {None}, "what can't be measured is not zero"
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a["decoder"] == "greedy" and a["score"] is not None]
    assert len(pairs) > 20
    for one, other in pairs:  # a plain model's score is that of one in process, but for words beyond the likeliest
        assert other["score"] == pytest.approx(one["score"], abs=1e-3)
        assert other["mass"] == pytest.approx(one["mass"], abs=1e-3)
    assert {row["score"] for row in theirs if row["task"] == "world_chair"} == {None}


@pytest.mark.slow
def test_neither_requests_in_flight_nor_their_order_decide_a_byte(served, tmp_path):
    one, many = (go(served, tmp_path / str(count), concurrency=count) for count in (1, 9))
    assert (one / "answers.parquet").read_bytes() == (many / "answers.parquet").read_bytes()
    told = [json.loads((folder / "asked.json").read_text()) for folder in (one, many)]
    assert told[0]["identity"] == told[1]["identity"]
    went_on = go(served, many, replace(SMALL, batch=32), concurrency=2)
    assert went_on == many


def test_a_million_questions_wait_in_no_memory(asked):
    """The queue takes a job when a request is free for it, never ahead."""
    _, task, asker = asked
    begun, told = [], []

    def jobs():
        for number, item in enumerate(task.items[:12]):
            begun.append(number)
            yield Job(0, task, number, [item], (("greedy", 0),))

    asker.ask_all(jobs(), lambda job, who, said: told.append(len(begun)))
    assert len(told) == 12
    assert told[0] <= 2 * asker.at_once


@pytest.mark.slow
@pytest.mark.parametrize("fault", [status(500), without_proof], ids=["answers 500", "loses its guard"])
def test_a_run_that_a_server_ends_keeps_its_answers_and_goes_on_to_the_same_end(served, unbroken, tmp_path, fault):
    with served.faulty(after(12, fault)), pytest.raises(RunError):
        go(served, tmp_path, concurrency=4)
    lines = [json.loads(line) for path in (tmp_path / "answers").iterdir() for line in path.open()]
    kept = sum(line["failed"] is None for line in lines)
    assert kept >= 5
    assert not (tmp_path / "answers.parquet").exists()
    served.forget()
    assert rows(go(served, tmp_path)) == unbroken
    assert len(served.seen) == 3 + len(unbroken) - kept, "what was kept is not asked again"


@pytest.mark.slow
def test_one_bad_request_is_one_row_that_failed_and_is_asked_again_by_the_same_command(served, unbroken, tmp_path):
    with served.faulty(once(9, status(400))):
        folder = go(served, tmp_path)
    (row,) = [row for row in rows(folder) if row["failed"] is not None]
    assert re.search("answered 400: .*out of order", row["failed"])
    assert row["text"] == ""
    assert len(rows(folder)) == len(unbroken)
    served.forget()
    assert rows(go(served, tmp_path)) == unbroken
    assert len(served.seen) == 3 + 1, "beside the small pictures, what failed alone"


@pytest.mark.slow
@pytest.mark.parametrize(("failing", "code"), [("all", 3), ("one", 0), ("none", 0)])
def test_eval_ask_counts_what_failed_with_the_first_reason_and_exits_3_where_that_is_all(
    served, tmp_path, failing, code
):
    words = ["eval", "ask", "--server", served.url, "--tasks", "world_pope", "--methods", "agla", "--no-controls"]
    words += ["--limit", "1", "--out", str(tmp_path), "--json"]
    faults = {"all": after(3, status(400)), "one": once(9, status(400)), "none": lambda _, reply: reply}
    with served.faulty(faults[failing]):
        done = CliRunner().invoke(app, words)
    total = len(rows(tmp_path))
    failed = {"all": total, "one": 1, "none": 0}[failing]
    assert done.exit_code == code, done.output
    assert json.loads(done.stdout)["failed"] == failed
    said = f"{failed} of {total} answers failed, the first as {served.url} answered 400: Error code: 400"
    assert (said in done.stderr.replace("\n", " ")) is bool(failed)
    assert ("Void:" in done.stderr) is (failing == "all")


def test_ctrl_c_cancels_what_is_in_flight(asked):
    served, task, asker = asked
    told = []

    def took(*_: Any) -> None:
        told.append(1)
        raise KeyboardInterrupt

    with served.faulty(lambda r, reply: replace(reply, wait=0.0 if r.number == 0 else 5.0)):
        began = time.monotonic()
        with pytest.raises((KeyboardInterrupt, asyncio.CancelledError)):
            asker.ask_all((Job(0, task, n, [i], (("greedy", 0),)) for n, i in enumerate(task.items)), took)
        assert time.monotonic() - began < 4
    assert told == [1]
