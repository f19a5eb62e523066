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

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pillow", "peft")  # that decide answers
BESIDE = ("scipy", "pyarrow", "openai", "lmms-eval", "datasets")  # that are told beside them
ASKING = ("spec", "infer", "decoders", "tasks")  # packages of this room that decide answers
NOT_ASKING = ("report", "cli", "bench", "verify", "adapters", "evals", "serve")  # folders that decide none, and rooms
# modules that make the embedded models, whose weights are digested themselves
MAKING = ("accept", "build", "export", "loop", "train", "train_blip", "train_llava")


def code_digest(*, adapters: bool = True, beside: Iterable[str] = ()) -> str:
    """Return a digest of the source that decides answers, so that those of other code are not taken for this code's.

    What scores, reports, serves, trains or prints is left out: to mend it costs no run.

    Args:
        adapters: whether the adapters' room decides, too.
        beside: folders and files below the package that decide as well, as of a study.
    """
    root = Path(lvlm_guard.__file__).parent
    core = (path for path in root.rglob("*.py") if path.relative_to(root).parts[0] not in NOT_ASKING)
    # the rooms are links in a checkout, which rglob does not follow
    rooms = [*(root / "evals" / name for name in ASKING), *([root / "adapters"] if adapters else [])]
    asking = {path for path in core if path.stem not in MAKING}
    rooms += [root / name for name in beside]
    deciding = (path for room in rooms for path in ([room] if room.is_file() else room.rglob("*.py")))
    digest = sha256()
    for path in sorted({*asking, *deciding}):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def weights_digest(folders: Iterable[Path]) -> str | None:
    """Return a digest of the safetensors in some folders; None where there are none, as for a server or a hub id."""
    digest, paths = sha256(), sorted(path for folder in folders for path in folder.glob("*.safetensors"))
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(1 << 24):
                digest.update(piece)
    return digest.hexdigest()[:16] if paths else None


def commit() -> str | None:
    """Return the commit of the checkout that this code runs from ("+changes" where it was edited), or None."""
    root = Path(lvlm_guard.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    told = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    try:
        return subprocess.run(told, cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def packages(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of those of some packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = installed(name)
        except PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """Return versions and machine, as a report tells them."""
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    found = {"python": platform.python_version(), **packages((*PACKAGES, *BESIDE)), "machine": machine}
    return found | {"commit": commit()}
