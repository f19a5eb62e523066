"""`--help` and imports stay light, and every command explains itself."""

import os
import re
import resource
import subprocess
import sys

import pytest

COMMANDS = ("demo", "generate", "mask", "bench", "doctor", "methods", "calibrate", "maskd", "play", "eval", "train")
EVAL = ("run", "compare", "check", "report", "export", "localize", "reproduce")
TRAIN = ("distill",)
HEAVY = ("torch", "transformers", "scipy", "huggingface_hub", "peft", "lmms_eval", "vllm", "gradio")
LISTS = ("--help", "train --help", "train distill --help", "eval run --help", "serve --help", "play --help")
ROOMS = ("lvlm_guard.evals", "lvlm_guard.adapters", "lvlm_guard.play", "lvlm_guard.serve")


def loaded_by(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "code",
    [
        "import lvlm_guard",
        "import lvlm_guard; lvlm_guard.methods.REGISTRY.names()",
        "import lvlm_guard.cli",
        "from lvlm_guard.verify import mentions",
        "from lvlm_guard.cli import main\ntry: main(['generate', '--help'])\nexcept SystemExit: pass",
        "from lvlm_guard.cli import main\ntry: main(['--version'])\nexcept SystemExit: pass",
    ],
)
def test_starting_loads_neither_torch_nor_any_room(code: str) -> None:
    loaded = loaded_by(code)
    assert "lvlm_guard" in loaded
    assert not {name for name in loaded if name.split(".")[0] in HEAVY}
    assert not {name for name in loaded if name.startswith(ROOMS)}


@pytest.mark.parametrize("arguments", LISTS)
def test_help_reads_settings_of_rooms_and_none_of_what_they_stand_on(arguments: str) -> None:
    loaded = loaded_by(f"from lvlm_guard.cli import main\ntry: main({arguments.split()})\nexcept SystemExit: pass")
    assert not {name for name in loaded if name.split(".")[0] in HEAVY}


def test_the_list_of_commands_reads_no_options_of_evals() -> None:
    loaded = loaded_by("from lvlm_guard.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass")
    assert {name for name in loaded if name.startswith("lvlm_guard.evals.")} == {"lvlm_guard.evals.commands"}


@pytest.mark.parametrize(
    ("arguments", "most"),
    [(["-c", "import lvlm_guard"], 0.3), (["-m", "lvlm_guard", "--help"], 0.6)],
)
def test_starting_takes_little_time(arguments: list[str], most: float) -> None:
    # processor time rather than wall time: other tests may run beside this one
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < most


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize(
    "command", [*COMMANDS, *(f"eval {name}" for name in EVAL), *(f"train {name}" for name in TRAIN)]
)
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lvlm_guard", *command.split(), "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert f"Example: lvlm-guard {command}" in plain(done.stdout)
    assert command in ("eval", "train") or "--json" in plain(done.stdout)


def test_the_list_of_commands_is_what_help_shows() -> None:
    done = subprocess.run([sys.executable, "-m", "lvlm_guard", "--help"], capture_output=True, text=True, check=True)
    for command in COMMANDS:
        assert re.search(rf"│ {command} ", plain(done.stdout))
