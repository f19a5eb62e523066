"""The wheel, the checkout and the import graph agree on the layout; importing costs little."""

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("adapters", "evals", "play", "serve")
LIGHT = ("torch", "transformers", "numpy", "scipy", "PIL", "peft", "vllm", "lmms_eval", "typer", "rich")


def tracked() -> list[Path]:
    """Files of the package as git knows them (a link is none), or as they lie where there is no git."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    paths = [ROOT / line for line in listed.stdout.splitlines()] or [
        p for p in ROOT.rglob("*") if ".venv" not in p.parts
    ]
    tops = {"lvlm_guard", *ROOMS}
    return [p for p in paths if p.relative_to(ROOT).parts[0] in tops and p.is_file() and not p.is_symlink()]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A wheel and a source archive built from a copy, so that the checkout keeps no build/ folder."""
    out = tmp_path_factory.mktemp("wheel")
    skip = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, out / "src", symlinks=True, ignore=skip)
    code = "from setuptools import build_meta as b; b.build_sdist('..'); b.build_wheel('..')"
    subprocess.run([sys.executable, "-c", code], cwd=out / "src", check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def wheel_names(built) -> set[str]:
    return set(zipfile.ZipFile(next(built.glob("*.whl"))).namelist())


def test_the_wheel_ships_every_module_and_data_file(wheel_names):
    want = {
        ("" if path.relative_to(ROOT).parts[0] == "lvlm_guard" else "lvlm_guard/") + path.relative_to(ROOT).as_posix()
        for path in tracked()
    }
    assert len(want) > 40
    assert want - wheel_names == set()


def test_the_wheel_installs_no_generic_top_level_name(wheel_names):
    assert {name.split("/")[0].split("-")[0] for name in wheel_names} == {"lvlm_guard"}


def test_the_wheel_is_small_and_holds_the_package_alone(built, wheel_names):
    (wheel,) = built.glob("*.whl")
    assert wheel.stat().st_size <= 15 << 20
    assert not [name for name in wheel_names if Path(name).match("test_*.py") or "tests" in Path(name).parts]
    assert not [name for name in wheel_names if "embedded_training" in name]


def test_the_source_archive_builds_the_package_and_holds_no_tests_and_no_training_of_the_embedded_models(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {"/".join(Path(name).parts[1:]) for name in opened.getnames()}
    assert {path.relative_to(ROOT).as_posix() for path in tracked()} - names == set()
    tops = {name.split("/")[0] for name in names if name}
    assert tops == {
        "lvlm_guard", *ROOMS, "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "lvlm_guard.egg-info",
        "pyproject.toml", "setup.cfg", "setup.py",
    }  # fmt: skip


def loaded_after(code: str) -> list[str]:
    show = f"import sys, json; {code}; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", show], check=True, capture_output=True, text=True)
    return json.loads(out.stdout.splitlines()[-1])


def test_importing_the_package_loads_no_room_and_nothing_heavy():
    modules = loaded_after("import lvlm_guard, lvlm_guard.methods; lvlm_guard.methods.REGISTRY.names()")
    assert not [m for m in modules if m.startswith(tuple(f"lvlm_guard.{room}" for room in ROOMS))]
    assert not [m for m in modules if m.split(".")[0] in LIGHT]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_refuses_to_be_imported_by_its_bare_name(room):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {room}"
    out = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert out.returncode == 1
    assert f"import lvlm_guard.{room}" in out.stderr


def test_every_tracked_text_file_is_free_of_paths_of_one_machine():
    for path in tracked():
        if path.suffix in {".py", ".md", ".toml", ".json", ".yaml"}:
            assert "/home/" not in path.read_text(encoding="utf-8"), path
