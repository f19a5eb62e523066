"""No answer is taken for a guarded one unless the server proves its guard."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from server_faults import told_knobs, without_proof
from server_runs import SMALL, go

from lvlm_guard.evals.errors import RunError
from lvlm_guard.evals.infer.server import server_run


def test_every_guarded_answer_is_kept_with_its_proof(unbroken):
    proofs = {row["decoder"]: set() for row in unbroken}
    for row in unbroken:
        proofs[row["decoder"]].add(row["proof"])
    assert {name: len(told) for name, told in proofs.items()} == {"greedy": 1, "agla": 1}
    assert json.loads(*proofs["agla"]) == {"knobs": {"alpha": 2, "beta": 0.5, "mask": "blip-v1"}, "method": "agla"}
    assert json.loads(*proofs["greedy"])["method"] is None


def test_a_guarded_name_that_does_not_prove_its_guard_is_never_asked_a_question(served, tmp_path):
    with served.faulty(without_proof), pytest.raises(RunError, match="does not say whether its guard ran"):
        go(served, tmp_path)
    assert len(served.seen) == 1, "only the small picture was asked about"


def test_header_or_body_alone_prove_a_guard_and_a_contradiction_does_not(served):
    settings = replace(SMALL, server=served.url)
    with served.faulty(lambda _, reply: replace(reply, headers={})):
        assert {d.name: d.knobs.get("alpha") for d in server_run(settings)[0]}["agla"] == 2.0
    with served.faulty(lambda r, reply: replace(without_proof(r, reply), headers=reply.headers)):
        assert {d.name: d.knobs.get("alpha") for d in server_run(settings)[0]}["agla"] == 2.0
    off = {"lvlm_guard": {"method": None, "knobs": {}}}
    with (
        served.faulty(lambda _, reply: replace(reply, body=reply.body | off)),
        pytest.raises(RunError, match="different guards for one answer"),
    ):
        server_run(settings)


def test_a_guard_with_other_knobs_than_asked_for_is_refused(served):
    settings = replace(SMALL, server=served.url, knobs={"agla": {"alpha": 1.5}})
    with served.faulty(told_knobs(alpha=2.0)), pytest.raises(RunError, match=r"asked for alpha=1.5 and .* alpha=2.0"):
        server_run(settings)
