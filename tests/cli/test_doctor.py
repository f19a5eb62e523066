import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from types import ModuleType
from typing import Any

import prove_families
import pytest

from lvlm_guard import matching, methods
from lvlm_guard.cli.doctor import _registered, _tried
from lvlm_guard.errors import MissingExtraError

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


def test_doctor_lists_the_families_as_the_page_does(run: Run) -> None:
    made = run("doctor", "--families", "--json")
    assert made.code == 0
    rows = {row["model_types"][0]: row for row in made.object["rows"]}
    assert all(set(row) == {"family", "model_types", "proven", "methods", "note"} for row in rows.values())
    assert all(rows[name]["proven"] and "agla" in rows[name]["methods"] for name in ("llava", "qwen3_vl", "gemma3"))
    assert rows["instructblip"]["proven"]
    assert rows["blip-2"]["proven"]
    assert rows["florence2"]["proven"] is False
    assert "decoder-only" in rows["florence2"]["note"]
    assert not [name for name, row in rows.items() if row["proven"] is None]
    assert "does not answer token by token" in rows["diffusion_gemma"]["note"]
    page = prove_families.PAGE.read_text()
    for kind, row in rows.items():
        if row["proven"]:
            assert f"| {row['family']} | `{kind}` | {', '.join(row['methods'])} | {row['note']} |" in page
    assert "qwen3_vl" in run("doctor", "--families").out


def test_doctor_proves_a_users_own_model(run: Run) -> None:
    made = run("doctor", "--model", "embedded", "--device", "cpu", "--json")
    assert made.code == 0
    (row,) = made.object["rows"]
    assert row["proven"]
    assert row["note"].startswith("off by ")


def test_methods_lists_every_registered_name_with_its_knobs(run: Run) -> None:
    rows = run("methods", "--json").object["rows"]
    names = {kind: [row["name"] for row in rows if row["kind"] == kind] for kind in ("method", "matcher", "family")}
    assert names["method"] == methods.REGISTRY.names()
    assert names["matcher"] == matching.REGISTRY.names()
    assert {"instructblip", "blip-2"} <= set(names["family"])
    agla = next(row for row in rows if row["name"] == "agla")
    assert (agla["knobs"]["alpha"], agla["knobs"]["beta"]) == (2.0, 0.5)
    assert agla["does"].startswith("AGLA")
    assert not any(row["error"] for row in rows)
    shown = run("methods").out
    assert all(row["name"] in shown for row in rows)


WITHOUT_PEFT = """
import sys
sys.modules["peft"] = None  # as where it is not installed
import json
from PIL import Image
from lvlm_guard.cli.doctor import examine
from lvlm_guard.matching import load_matcher
match = load_matcher("embedded-clip")([Image.new("RGB", (40, 30), "red")], ["a photo of a dog"])[0]
errors = {}
for name in ("embedded-dual-prompt", "embedded-ranker"):
    try:
        load_matcher(name)
    except Exception as error:
        errors[name] = [type(error).__name__, str(error)]
findings = {finding.part: finding.state for finding in examine()}
print(json.dumps([list(match.relevance.shape), errors, findings]))
"""


@pytest.mark.slow
def test_without_peft_clip_matches_the_others_say_what_to_install_and_nothing_is_broken() -> None:
    made = subprocess.run([sys.executable, "-c", WITHOUT_PEFT], capture_output=True, text=True, check=True)
    shape, errors, findings = json.loads(made.stdout.splitlines()[-1])
    assert len(shape) == 2
    for name in ("embedded-dual-prompt", "embedded-ranker"):
        assert errors[name][0] == "MissingExtraError"
        assert "pip install 'lvlm-guard[train]'" in errors[name][1]
    assert findings["methods and matchers"] == "ok"
    assert "broken" not in findings.values()


@pytest.mark.parametrize(("error", "state"), [(MissingExtraError("pip install x"), "ok"), (ImportError("x"), "broken")])
def test_a_matcher_that_is_not_installed_is_off_and_one_that_fails_is_broken(
    monkeypatch: pytest.MonkeyPatch, error: Exception, state: str
) -> None:
    class Absent(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise error

    monkeypatch.setitem(sys.modules, "not_here", Absent("not_here"))
    monkeypatch.setitem(matching.REGISTRY._builtin, "mine", "not_here:Matcher")
    found = _tried("methods and matchers", _registered)
    assert found.state == state
    assert "mine (not_here:Matcher)" in found.detail
