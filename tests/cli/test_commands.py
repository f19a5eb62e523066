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
        'def unread(name: "Missing" = 1) -> None:\n'
        '    """Say what its types are."""\n'
        "NUMBER = 3\n"
    )
    meta = tmp_path / "theirs-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    lines = [
        "[lvlm_guard.commands]",
        "greet = theirs:greet",
        "train.theirs = theirs:greet",
        "broken = theirs_gone:greet",
        "quitting = theirs_quits:greet",
        "nothing = theirs:NUMBER",
        "unread = theirs:unread",
    ]
    (meta / "entry_points.txt").write_text("\n".join(lines))
    (tmp_path / "theirs_quits.py").write_text("import sys\nsys.exit('theirs needs [a GPU]')\n")
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
    assert "SystemExit: theirs needs [a GPU]" in shown.stdout


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("broken", "No module named 'theirs_gone'"),
        ("quitting", "theirs needs [a GPU]"),
        ("nothing", "3 is no function"),
        ("unread", "name 'Missing' is not defined"),
    ],
)
def test_one_that_cannot_be_run_says_why(package: dict[str, str], name: str, why: str) -> None:
    tried = lvlm_guard(package, name, "--name", "me")
    assert tried.returncode == 1
    assert why in tried.stderr
    assert "Update or uninstall" in tried.stderr
    assert "Traceback" not in tried.stderr


def test_shells_complete_beside_commands_that_cannot_be_read(package: dict[str, str]) -> None:
    asked = {"_LVLM_GUARD_COMPLETE": "complete_bash", "COMP_WORDS": "lvlm-guard ", "COMP_CWORD": "1"}
    told = lvlm_guard(package | asked).stdout.split()
    assert {"generate", "greet", "unread", "train"} <= {*told}


def test_where_the_package_is_not_installed_a_rooms_command_says_so() -> None:
    code = "from lvlm_guard.cli import app; app.COMMANDS._found = {}; app.app(['eval', 'run'])"
    environment = {**os.environ, "COLUMNS": "400", "TERM": "dumb"}
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert tried.returncode == 2
    assert "entry points" in tried.stderr
    assert "pip install" in tried.stderr


def test_a_command_that_is_not_there_is_wrong_usage(package: dict[str, str]) -> None:
    tried = lvlm_guard(package, "trian")
    assert tried.returncode == 2
    assert "train" in tried.stderr
