"""How lmms-eval finds the model, and what is said when it does not."""

import subprocess
import sys

import pytest


def python(code, *paths):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(p) for p in paths]!r}\n{code}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout + done.stderr[-2000:]


@pytest.fixture(scope="module")
def found():
    from lmms_eval.models import get_model, list_available_models

    return get_model("lvlm_guard"), list_available_models()


def test_lmms_eval_finds_the_model_by_its_entry_point(found):
    model, names = found
    assert "lvlm_guard" in names
    assert model.__module__ == "lvlm_guard.evals.lmms.model"
    assert model.is_simple is False


def test_the_manifest_loads_nothing_heavy():
    said = python(
        "import lvlm_guard.evals.lmms\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'lmms_eval', 'PIL', 'numpy'} & sys.modules.keys()))"
    )
    assert said.strip() == "[]"


def test_the_installed_filelock_is_one_that_works():
    from importlib.util import find_spec

    assert find_spec("filelock._api") is not None
