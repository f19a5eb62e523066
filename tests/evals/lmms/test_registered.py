"""How lmms-eval finds the model, and what is said when it does not."""

import subprocess
import sys

import pytest

from lvlm_guard.evals.lmms.registered import check_registered


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
    check_registered()
    from lmms_eval.models import get_model, list_available_models

    return get_model("lvlm_guard"), list_available_models()


def test_lmms_eval_finds_the_model_by_its_entry_point(found):
    model, names = found
    assert "lvlm_guard" in names
    assert model.__module__ == "lvlm_guard.evals.lmms.model"
    assert model.is_simple is False


def test_the_manifest_loads_nothing_heavy():
    said = python(
        "import lvlm_guard.evals.lmms.manifest\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'lmms_eval', 'PIL', 'numpy'} & sys.modules.keys()))"
    )
    assert said.strip() == "[]"


CHECK = """
from lvlm_guard.evals.lmms.registered import check_registered
try:
    check_registered()
    print("registered")
except Exception as error:
    print(type(error).__name__, error)
"""


def package(folder, name, entry):
    """Write another installed package that brings a model for lmms-eval."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[lmms_eval.models]\n{entry}\n")


def test_another_packages_broken_entry_point_is_named_with_its_error(tmp_path):
    package(tmp_path, "aaa-broken", "broken = no_such_module_here:manifest")
    said = python(CHECK, tmp_path)
    assert "GuardError lmms-eval does not know the model 'lvlm_guard'" in said
    assert "'broken' of aaa-broken" in said
    assert "No module named 'no_such_module_here'" in said
    assert "Repair or uninstall aaa-broken" in said


def test_a_good_neighbour_does_no_harm(tmp_path):
    package(tmp_path, "aaa-good", "good = good_neighbour:manifest")
    (tmp_path / "good_neighbour.py").write_text(
        "from lmms_eval.models.registry_v2 import ModelManifest\n"
        "manifest = ModelManifest(model_id='good', chat_class_path='good_neighbour.Good')\n"
    )
    assert "registered" in python(CHECK, tmp_path)


def test_without_lmms_eval_the_installation_is_named(tmp_path):
    (tmp_path / "lmms_eval").mkdir()
    (tmp_path / "lmms_eval" / "__init__.py").write_text("raise ImportError('no lmms-eval here')")
    said = python(CHECK, tmp_path)
    assert "MissingExtraError lmms-eval can't be imported (no lmms-eval here)" in said
    assert "pip install 'lvlm-guard[eval]'" in said


def test_a_filelock_that_breaks_lmms_eval_is_named(tmp_path):
    """filelock 4 has no module `_api`, which lmms-eval 0.7.3 changes when a run begins."""
    (tmp_path / "filelock").mkdir()
    (tmp_path / "filelock" / "__init__.py").write_text("__version__ = '4.0.0'")
    said = python(CHECK, tmp_path)
    assert "MissingExtraError lmms-eval does not work with filelock 4" in said
    assert "pip install 'filelock<4'" in said


def test_the_installed_filelock_is_one_that_works():
    from importlib.util import find_spec

    assert find_spec("filelock._api") is not None
