"""What is tried of the shelf: every extra, and the README's own words."""

import importlib.util
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("shelf", ROOT / ".ci" / "shelf.py")
shelf = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shelf)


def test_every_extra_that_users_are_offered_is_tried_or_resolved():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(project["optional-dependencies"]) - {"dev"} - set(shelf.TRIES) - set(shelf.RESOLVED) == set()


def test_the_first_answer_is_the_readmes_own_python_and_needs_no_file_of_the_checkout():
    code = shelf.guarded_answer()
    compile(code, "README.md", "exec")
    assert "guard(model, processor)" in code
    assert "docs/" not in code
