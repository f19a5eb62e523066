"""Proofs are read strictly: whatever is missing, odd or contradictory is none."""

from __future__ import annotations

import pytest
from soaking.proof import check, expected

from lvlm_guard.errors import UnprovedError
from lvlm_guard.serve.front import answers

AGLA = {"method": "agla", "knobs": {"alpha": 2.0, "beta": 0.5}, "mask": "blip@1/x y"}
HEADER = "on; alpha=2; beta=0.5; mask=blip@1/x y"
OFF = {"x-agla": "off", "x-vote": "off"}
NONE = {"method": None, "knobs": {}}


@pytest.mark.parametrize(
    ("guard", "knobs", "version"),
    [
        (None, {}, ""),
        ("agla", {"alpha": 2.0, "beta": 0.5}, "blip@1/ü; =,%"),
        ("vote", {"lam": 1e-7, "beta": 0.1}, "v"),
        ("apc", {"beta": 0.5}, ""),
        ("vcd", {"alpha": 1 / 3, "beta": 0.1}, ""),
    ],
)
def test_what_the_front_says_is_read_as_it_was_meant(guard, knobs, version):
    said = answers.Proof("tiny", ("agla", "vote", "apc", "vcd"), guard, knobs, version)
    headers = {name.decode(): value.decode() for name, value in said.headers()}
    found = check("tiny", expected(guard, knobs), headers, [said.body(), said.body()])
    assert (found.guard, found.knobs, found.version) == (guard, knobs, version)


@pytest.mark.parametrize(
    ("headers", "fields"),
    [
        ({}, [AGLA]),
        ({"x-agla": HEADER}, []),
        ({}, []),
        (OFF, [NONE]),
        ({"x-agla": "off"}, [AGLA]),
        ({"x-agla": HEADER}, [NONE]),
        ({"x-agla": HEADER}, [AGLA, NONE]),
        ({"x-agla": HEADER, "x-vote": "off"}, [AGLA]),
        ({"x-agla": "refused"}, [AGLA]),
        ({"x-agla": "on"}, [AGLA]),
        ({"x-agla": "on; alpha=2; beta=0.5"}, [{k: v for k, v in AGLA.items() if k != "mask"}]),
        ({"x-agla": "on; alpha=2; beta=0.5; mask="}, [{**AGLA, "mask": ""}]),
        ({"x-agla": "on; alpha=2; mask=blip@1/x y"}, [{**AGLA, "knobs": {"alpha": 2.0}}]),
        ({"x-agla": HEADER + "; gamma=1"}, [{**AGLA, "knobs": {**AGLA["knobs"], "gamma": 1}}]),
        ({"x-agla": HEADER.replace("0.5", "half")}, [AGLA]),
        ({"x-agla": HEADER.replace("alpha=2", "alpha=1")}, [{**AGLA, "knobs": {"alpha": 1, "beta": 0.5}}]),
        ({"x-agla": HEADER.replace("alpha=2", "alpha=1")}, [AGLA]),
        ({"x-agla": HEADER}, [{**AGLA, "mask": "blip@2"}]),
        ({"x-agla": HEADER}, [{**AGLA, "knobs": None}]),
        ({"x-agla": HEADER}, [{**AGLA, "knobs": {"alpha": "2", "beta": 0.5}}]),
        ({"x-agla": HEADER}, [{**AGLA, "method": ["agla"]}]),
        ({"x-agla": HEADER}, [None]),
        ({"x-agla": HEADER}, ["agla"]),
        ({"x-vote": "on; lam=1; beta=0.1; scores=v"}, [{"method": "vote", "knobs": {}, "scores": "v"}]),
        (
            {"x-vote": "on; lam=1; beta=0.1; scores=v"},
            [{"method": "vote", "knobs": {"lam": 1, "beta": 0.1}, "scores": "v"}],
        ),
    ],
)
def test_anything_else_is_no_proof_of_agla(headers, fields):
    with pytest.raises(UnprovedError, match="tiny-agla"):
        check("tiny-agla", expected("agla", {}), headers, fields)


def test_a_guard_under_the_plain_name_is_no_plain_answer():
    with pytest.raises(UnprovedError, match=r"agla alpha=2 beta=0\.5, not no guard"):
        check("tiny", expected(None, {}), {"x-agla": HEADER}, [AGLA])
    assert check("tiny", expected(None, {}), OFF, [NONE]).guard is None
    assert check("tiny-agla", expected("agla", {}), {"x-agla": HEADER}, [AGLA]).version == "blip@1/x y"
