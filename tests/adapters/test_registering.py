"""Our tuner is registered with PEFT behind PEFT's own import, whoever does that and wherever PEFT is found."""

import subprocess
import sys

import pytest

BEGUN = """
import importlib, sys, threading, time
from importlib.machinery import PathFinder
import lvlm_guard.adapters

assert "peft" not in sys.modules
found = PathFinder.find_spec
"""
MEANWHILE = """
other = threading.Thread(target=importlib.import_module, args=("lvlm_guard.adapters.prompts",))

def find_spec(name, path=None, target=None):
    spec = found(name, path, target)
    if name == "peft.tuners":
        run = spec.loader.exec_module

        def run_later(module):
            other.start()
            while "lvlm_guard.adapters.prompts" not in sys.modules:
                time.sleep(0.01)
            run(module)

        spec.loader.exec_module = run_later
    return spec

PathFinder.find_spec = find_spec
import peft
other.join()
"""
INSTALLERS = """
class Own:  # behind the others, as pip's for a package that is installed from its folder
    def find_spec(self, name, path=None, target=None):
        return found(name, path) if name == "peft" else None

PathFinder.find_spec = lambda name, path=None, target=None: None if name == "peft" else found(name, path)
sys.meta_path.append(Own())
import peft
"""


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(MEANWHILE, id="another thread imports the tuner meanwhile"),
        pytest.param(INSTALLERS, id="an installer's own finder finds it", marks=pytest.mark.slow),
    ],
)
def test_who_imports_peft_has_our_tuner(program: str) -> None:
    command = [sys.executable, "-c", f"{BEGUN}{program}print(peft.PeftType('DUAL_PROMPT').name)"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert done.stdout == "DUAL_PROMPT\n", done.stderr
