"""What GitHub reads: workflows that call the Makefile alone, forms that ask for the doctor, hooks that lint."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import lvlm_guard

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(path):
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-workflows", WORKFLOWS),
        ("github-issue-forms", FORMS),
        ("github-issue-config", [GITHUB / "ISSUE_TEMPLATE" / "config.yml"]),
        ("citation-file-format", [ROOT / "CITATION.cff"]),
    ],
)
def test_the_files_are_of_their_published_schemas(schema, files):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_targets_of_the_makefile_and_nothing_else(path):
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    jobs = read(path)["jobs"].values()
    for step in steps(path):
        if "run" in step:
            words = step["run"].replace("${{ ", "${{").replace(" }}", "}}").split()
            assert words[0] == "make", step
            named = [word for word in words[1:] if "=" not in word]
            asked = {t for job in jobs for t in job.get("strategy", {}).get("matrix", {}).get("target", [])}
            assert {word for word in named if "$" not in word} | asked <= targets, step
            assert {word for word in named if "$" in word} <= {"${{matrix.target}}"}
    assert all("timeout-minutes" in job for job in jobs)
    assert read(path)["permissions"] == {"contents": "read"}


def test_every_python_that_the_package_names_is_tested_and_both_ends_of_transformers():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r"Python :: 3\.\d+$", c)]
    jobs = read(GITHUB / "workflows" / "tests.yml")["jobs"]
    assert jobs["newest"]["strategy"]["matrix"]["python"] == named
    oldest = jobs["oldest"]["strategy"]["matrix"]["python"]
    assert (oldest[0], oldest[-1]) == (named[0], named[-1])


def test_only_the_publishing_job_may_ask_for_the_indexs_trust():
    jobs = read(GITHUB / "workflows" / "release.yml")["jobs"]
    assert [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})] == ["publish"]
    assert "password" not in str(jobs["publish"])


def test_the_hooks_are_the_lines_of_make_lint():
    (repo,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]
    lines = [line.strip().removeprefix("@").replace("$(BIN)", ".venv/bin") for line in lint.splitlines()]
    assert [hook["entry"] for hook in repo["hooks"]] == lines


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_asks_for_what_the_doctor_prints(path):
    (asked,) = [part for part in read(path)["body"] if part.get("id") == "doctor"]
    assert "lvlm-guard doctor" in asked["attributes"]["label"]
    assert asked["validations"]["required"]


def test_the_citation_is_of_this_version():
    assert read(ROOT / "CITATION.cff")["version"] == lvlm_guard.__version__
