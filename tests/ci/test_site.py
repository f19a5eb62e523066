"""The site builds strictly; a page without a reader, a broken link, a public name without a sentence stop it."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mkdocs.exceptions import PluginError

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("site_hooks", ROOT / ".ci" / "site.py")
site = importlib.util.module_from_spec(spec)
spec.loader.exec_module(site)


def test_every_public_name_has_a_sentence_and_the_first_ones_are_where_they_are_imported_from():
    assert {"guard", "unguard", "GuardTrace"} <= set(site.public_names("lvlm_guard"))
    assert {"AGLA", "APC", "Focus", "VCD", "Vote"} <= set(site.public_names("methods"))
    assert "load_matcher" in site.public_names("matching")
    for package in site.REFERENCE:
        assert site.public_names(package), package
        assert site.undocumented(package, site.public_names(package)) == []


def test_a_public_name_without_a_sentence_stops_the_build(monkeypatch):
    monkeypatch.setattr(site, "undocumented", lambda package, names: [f"lvlm_guard.{package}.bare"])
    with pytest.raises(PluginError, match=r"without a sentence: lvlm_guard\.verify\.bare"):
        site.reference("verify")


def test_links_are_fitted_to_the_site_and_lead_to_what_there_is():
    text = "[a](docs/engineer.md#the-matcher) ![b](docs/picture.png) [c](docs/make_picture.py)\n"
    text += "```py\nx[0](docs/no.md)\n```\n"
    fitted = site.linked(text, "README.md", "index.md")
    assert "[a](engineer.md#the-matcher) ![b](picture.png) c, `docs/make_picture.py`" in fitted
    assert "x[0](docs/no.md)" in fitted
    assert site.linked("[r](../README.md)", "docs/families.md", "families.md") == "[r](index.md)"
    with pytest.raises(PluginError, match=r"links to docs/nowhere\.md, which is not there"):
        site.linked("[a](docs/nowhere.md)", "README.md", "index.md")


def test_every_page_of_docs_and_every_readers_page_is_in_the_sites_navigation():
    listed = set(re.findall(r"[\w./]+\.md", str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])))
    wanted = {path.name for path in (ROOT / "docs").glob("*.md")} | {page for page, _ in site.PAGES.values()}
    assert listed == wanted | {f"reference/{package}.md" for package in site.REFERENCE}


def test_the_advice_on_methods_follows_from_the_figures_and_says_so_where_they_change():
    chosen = {
        "agla": (0.05, -0.1, -0.1),
        "focus": (0.2, 0.1, -0.1),
        "vote": (0.1, -0.1, -0.1),
        "vcd": (0.1, -0.1, -0.1),
    }
    rows = [
        {"task": t, "decoder": m, "baseline": "greedy", "metric": metric, "value": v, "low": v - 0.05, "high": v + 0.04}
        for m, (gain, absent, there) in chosen.items()
        for t, metric, v in (
            ("pope_all", "accuracy_matched", gain),
            ("chair", "chair_i", absent),
            ("chair", "object_recall", there if m == "vcd" else 0.0),
        )
    ]
    costs = (("agla", 2.0), ("focus", 1.5), ("vote", 3.0), ("vcd", 1.1))
    run = {
        "rows": rows,
        "decoders": [{"name": m, "role": "method", "method": m, "sampled": False} for m in chosen],
        "costs": [
            {"task": task, "decoder": m, "metric": "time_ratio", "value": cost}
            for m, cost in costs
            for task in ("world_pope", "world_chair")
        ],
        "verdicts": [
            {"task": "pope_all", "decoder": m, "verdict": "ranks better" if m in ("vote", "focus") else "ranks worse"}
            for m in chosen
        ],
    }
    from method_tables import which_table

    said = which_table({"drawn": run})
    assert "- **Yes/no questions**: `focus`, `vote`, the largest gain first. Ranked worse than no guard: `agla`" in said
    assert "- **Captions**: fewer absent objects, and no fewer of those that are there: `agla`, `vote`." in said
    assert "Paid for with objects that are there: `vcd`." in said
    assert "- **Both at once**: `vote`; `guard(model, processor)` takes the first." in said
    assert "`focus` (1.50 × greedy); **for captions**: `agla` (2.00 × greedy)" in said


@pytest.mark.slow
def test_the_site_builds_strictly_without_network_and_loads_nothing_from_elsewhere(tmp_path):
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **nowhere}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "which_method.html").read_text(encoding="utf-8")
    assert "ranks better" in page
    assert "lvlm_guard.guard" in (tmp_path / "site" / "reference" / "lvlm_guard.html").read_text(encoding="utf-8")
    assert "fonts.googleapis" not in page
