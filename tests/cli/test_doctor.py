from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from lvlm_guard import matching, methods

Run = Callable[..., Any]


def test_doctor_finds_the_core_working_and_says_what_to_install(run: Run) -> None:
    made = run("doctor", "--json")
    assert made.code == 0
    rows = {row["part"]: row for row in made.object["rows"]}
    assert rows["torch"]["detail"] == version("torch")
    for part in ("device", "embedded model", "a guarded answer", "methods and matchers"):
        assert rows[part]["state"] == "ok", rows[part]
    assert "HF_HUB_OFFLINE" in rows["model hub"]["detail"]
    for row in rows.values():
        assert row["state"] in ("ok", "off", "missing", "broken")
        if row["part"].startswith("[") and row["state"] == "off":
            assert row["fix"].startswith("pip install 'lvlm-guard[")


def test_doctor_prints_a_table(run: Run) -> None:
    made = run("doctor")
    assert made.code == 0
    assert "a guarded answer" in made.out


def test_methods_lists_every_registered_name_with_its_knobs(run: Run) -> None:
    rows = run("methods", "--json").object["rows"]
    names = {kind: [row["name"] for row in rows if row["kind"] == kind] for kind in ("method", "matcher", "family")}
    assert names["method"] == methods.REGISTRY.names()
    assert names["matcher"] == matching.REGISTRY.names()
    assert {"any", "instructblip"} <= set(names["family"])
    agla = next(row for row in rows if row["name"] == "agla")
    assert (agla["knobs"]["alpha"], agla["knobs"]["beta"]) == (2.0, 0.5)
    assert agla["does"].startswith("AGLA")
    assert not any(row["error"] for row in rows)
    shown = run("methods").out
    assert all(row["name"] in shown for row in rows)
