"""The tasks that lmms-eval brings along, found without starting it (its own index takes 20 seconds)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from lvlm_guard.errors import MissingExtraError, UnknownNameError
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.lmms.registered import INSTALL

_TASK = re.compile(r"^task\s*:\s*[\"']?([\w.+-]+)[\"']?\s*(?:#.*)?$", re.MULTILINE)


@dataclass(frozen=True)
class StockTask:
    """A task of lmms-eval: its name, its file, and the split that it asks."""

    name: str
    path: Path
    split: str


def stock_names() -> list[str]:
    """Return the names of all tasks of lmms-eval.

    Raises:
        MissingExtraError: lmms-eval is not installed.
    """
    return list(_files())


def stock_task(name: str) -> StockTask:
    """Return a task of lmms-eval.

    Raises:
        MissingExtraError: lmms-eval is not installed.
        UnknownNameError: it has no such task.
        DataError: the task asks neither a test nor a validation split.
    """
    files = _files()
    if name not in files:
        near = get_close_matches(name, files, n=3, cutoff=0.5)
        raise UnknownNameError(
            f"lmms-eval has no task {name!r}. "
            + (f"Did you mean {' or '.join(map(repr, near))}? " if near else "")
            + "Groups are not tasks: name one of their members. `lmms-eval tasks` lists them all."
        )
    config = _config(files[name])
    split = config.get("test_split") or config.get("validation_split")
    if not isinstance(split, str):
        raise DataError(
            f"{name} names no test or validation split in {files[name]}: it can't be pointed at other data."
        )
    return StockTask(name, files[name], split)


@cache
def _files() -> dict[str, Path]:
    package = find_spec("lmms_eval")
    if package is None or not package.submodule_search_locations:
        raise MissingExtraError(f"lmms-eval is not installed: {INSTALL}.")
    root = Path(package.submodule_search_locations[0]) / "tasks"
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*.yaml")):
        for match in _TASK.finditer(path.read_text(encoding="utf-8", errors="replace")):
            found.setdefault(match[1], path)
    return found


def _config(path: Path) -> dict[str, Any]:
    """Return a task's YAML with what it includes; `!function` values are left out."""
    config: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader) or {}
    included = config.pop("include", None)
    for name in [included] if isinstance(included, str) else included or []:
        config = _config(path.parent / name) | config
    return config


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # without types
    """Reads `!function module.name` as None: nothing of the task is imported."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
