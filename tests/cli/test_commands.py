"""Commands come by entry points: of the rooms, and of other packages."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from lvlm_guard.cli.app import COMMANDS

ROOT = Path(__file__).parents[2]


def test_every_command_of_the_rooms_is_registered_here() -> None:
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lvlm_guard.commands"]
    found = {point.name: point.value for point in entry_points(group="lvlm_guard.commands")}
    assert told.items() <= found.items(), "install the package again: its entry points have changed"
    assert {"train", "train.distill", "eval", "serve"} <= {*COMMANDS.names()}


@pytest.fixture
def package(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which another package is installed, with a good command, a group's and a broken one."""
    (tmp_path / "theirs.py").write_text(
        "from typing import Annotated\n"
        "import typer\n"
        'def greet(name: Annotated[str, typer.Option(help="Whom.")] = "you") -> None:\n'
        '    """Say hello."""\n'
        '    print("hello", name)\n'
    )
    meta = tmp_path / "theirs-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text(
        "[lvlm_guard.commands]\ngreet = theirs:greet\ntrain.theirs = theirs:greet\nbroken = theirs_gone:greet\n"
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "TERM": "dumb"}


def lvlm_guard(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lvlm_guard", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_another_package_adds_a_command_and_one_to_a_group(package: dict[str, str]) -> None:
    assert lvlm_guard(package, "greet", "--name", "me").stdout == "hello me\n"
    assert lvlm_guard(package, "train", "theirs").stdout == "hello you\n"
    assert "Say hello." in lvlm_guard(package, "train", "--help").stdout


def test_one_that_cannot_be_loaded_says_so_and_leaves_the_others_alone(package: dict[str, str]) -> None:
    shown = lvlm_guard(package, "--help")
    assert shown.returncode == 0
    assert "theirs_gone:greet can't be loaded" in shown.stdout
    assert "Say hello." in shown.stdout
    tried = lvlm_guard(package, "broken")
    assert tried.returncode == 1
    assert "No module named 'theirs_gone'" in tried.stderr


def test_a_command_that_is_not_there_is_wrong_usage(package: dict[str, str]) -> None:
    tried = lvlm_guard(package, "trian")
    assert tried.returncode == 2
    assert "train" in tried.stderr
