"""Every block of the README and of the docs runs, and every table is what the commands printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BIN = Path(sys.executable).parent
SERVED = "operator.md"  # asks a running server: tests/serve/vllm/test_server_page.py


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def run(command, cwd, **env):
    done = subprocess.run(
        command, cwd=cwd, check=False, capture_output=True, text=True, env={**os.environ, **env, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != SERVED], ids=lambda page: page.name)
def test_the_python_blocks_of_a_page_run_one_after_the_other(page, tmp_path):
    code = "\n".join(blocks(page, "python"))
    if not code:
        pytest.skip("no Python on this page")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    run([sys.executable, "-c", code], tmp_path)


@pytest.mark.slow
def test_the_shell_commands_of_the_readme_run(tmp_path):
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    lines = [line for block in blocks(ROOT / "README.md", "sh") for line in block.splitlines() if line.strip()]
    assert any(line.startswith("lvlm-guard generate") for line in lines)
    for line in lines:
        if line.startswith("lvlm-guard") and not line.startswith(("lvlm-guard serve", "lvlm-guard play")):
            run(["bash", "-c", line], tmp_path, PATH=f"{BIN}:{os.environ['PATH']}")
    assert (tmp_path / "answer.html").stat().st_size > 10_000
    assert (tmp_path / "mask.png").stat().st_size > 1_000


def test_the_make_targets_that_the_pages_name_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        name
        for page in [*PAGES, ROOT / "CONTRIBUTING.md"]
        for name in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {"demo", "test"} <= named <= targets


@pytest.mark.slow
def test_make_demo_runs_and_writes_its_page(tmp_path):
    run(["make", "-o", f"{BIN.parent}/.core", "demo", f"ARGS=--quick --out {tmp_path}", f"VENV={BIN.parent}"], ROOT)
    assert (tmp_path / "demo.html").stat().st_size > 50_000


def test_the_tables_of_the_pages_are_what_the_commands_printed():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import make_tables
    finally:
        sys.path.pop(0)
    for page in make_tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert make_tables.filled(text) == text, page
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "its paired difference to greedy" in text
    assert "time" in text


def test_links_of_the_pages_lead_somewhere():
    for page in [*PAGES, ROOT / "recipes" / "README.md", ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
