"""Where a figure comes from: code, commit, weights, versions, machine."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from hashlib import sha256
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import lvlm_guard

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scipy", "pillow", "lmms-eval", "datasets")
ROOMS = ("adapters", "evals", "serve")


def code_digest() -> str:
    """Return a digest of this package's source, so that answers of other code are not taken for this code's."""
    root = Path(lvlm_guard.__file__).parent
    digest = sha256()
    # the rooms are links in a checkout, which rglob does not follow
    for path in sorted({*root.rglob("*.py"), *(p for room in ROOMS for p in (root / room).rglob("*.py"))}):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def weights_digest(folders: Iterable[Path]) -> str | None:
    """Return a digest of the safetensors in some folders; None where there are none, as for a server or a hub id."""
    paths = sorted(path for folder in folders for path in folder.glob("*.safetensors"))
    if not paths:
        return None
    digest = sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(1 << 24):
                digest.update(piece)
    return digest.hexdigest()[:16]


def commit() -> str | None:
    """Return the commit of the checkout that this code runs from ("+changes" where it was edited), or None."""
    root = Path(lvlm_guard.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        named = _git(root, "rev-parse", "HEAD")
        return f"{named}+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else named
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def environment() -> dict[str, Any]:
    """Return versions and machine, as they stand in `run.json`."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = installed(name)
        except PackageNotFoundError:
            continue
    found["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    found["commit"] = commit()
    return found
