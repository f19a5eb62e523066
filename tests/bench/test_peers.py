"""Another package's methods beside ours: the real mitigv on the embedded model."""

from __future__ import annotations

import importlib.metadata

import pytest

from lvlm_guard import methods
from lvlm_guard.bench import peers
from lvlm_guard.bench.measure import Arm, Bench
from lvlm_guard.bench.peers import peer, peer_name, peers_of
from lvlm_guard.bench.workloads import world_workloads
from lvlm_guard.errors import MissingExtraError
from lvlm_guard.pretrained import load_model

VERSION = importlib.metadata.version("mitigv")


@pytest.fixture(scope="module")
def pair():
    return load_model("embedded")


def test_only_methods_that_both_have_are_compared():
    assert peers_of(["agla", "focus", "vcd", "vote"]) == ["agla", "vcd"]


def test_without_the_other_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(peers, "PACKAGE", "no_such_package")
    with pytest.raises(MissingExtraError, match="pip install no_such_package"):
        peers_of(["vcd"])


def test_a_peer_answers_the_same_questions(pair):
    workload = world_workloads(1, (1,))[1]
    answer = peer("m3id", *pair, workload.new_tokens)
    assert {answer(workload.pictures(k), workload.prompts(k))[0] for k in range(6)} <= {"yes", "no"}


def test_a_peer_has_rows_of_its_requests_and_one_that_raises_has_none(pair):
    arms = [Arm("greedy"), Arm("vcd", "auto", methods.VCD()), *(Arm(peer_name(n), peer=n) for n in ("vcd", "pai"))]
    bench = Bench(*pair, "embedded", blocks=2)
    rows = bench.run(world_workloads(2, (1,))[1:], arms)
    theirs = [row for row in rows if row["execution"] == "peer"]
    assert {row["method"] for row in theirs} == {f"mitigv {VERSION} vcd"}
    assert {row["metric"] for row in theirs} == {
        "request_ratio",
        "seconds_per_call",
        "tokens_per_s",
        "peak_memory_mib",
    }
    assert all(row["value"] > 0 for row in theirs)
    assert list(bench.raised) == [f"mitigv {VERSION} pai"]
    assert "RuntimeError" in bench.raised[f"mitigv {VERSION} pai"]
