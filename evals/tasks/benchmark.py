"""Published tests as tasks. `benchmarks.toml` says how each is asked and scored, and where its files are.

A test's own module reads its rows and says what is right; finding pictures and making the task is the same for all.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from lvlm_guard.evals.decoders.decoder import PAPER
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.fetching import Published
from lvlm_guard.evals.tasks.pictures import find_pictures

STOCK_SUFFIX = "\nAnswer the question using a single word or phrase."
"""What follows yes/no questions in lmms-eval's tasks."""


@cache
def benchmarks() -> dict[str, dict[str, Any]]:
    """Return what `benchmarks.toml` says."""
    return tomllib.loads(files("lvlm_guard.evals").joinpath("tasks/benchmarks.toml").read_text(encoding="utf-8"))


def published(name: str) -> dict[str, Published]:
    """Return the published files of a test, by their paths in its repository."""
    told = benchmarks()[name]
    return {path: Published(f"{told['at']}/{path}", sha256) for path, sha256 in told["files"].items()}


def check_split(name: str, settings: Settings) -> None:
    """Raise `DataError` where a run would choose settings on a published test."""
    if settings.split == "val" and benchmarks().get(name, {}).get("test_only"):
        raise DataError(f"{name} is a published test, and settings must not be chosen on it: sweep on another task.")


def made(
    test: str,
    settings: Settings,
    items: Iterable[Item],
    about: Mapping[str, Any] | None = None,
    *,
    name: str = "",
    places: Callable[[str], Iterable[str]] | None = None,
) -> EvalTask:
    """Return a published test as a task, picture by picture: of the first `limit` pictures, each with its file.

    Args:
        test: as in `benchmarks.toml`.
        items: what it asks; pictures of those that have none are looked for, as `find_pictures` does with `places`.
        about: what a report says beside source, protocol and prompt, or instead.
        name: of the task, where it is not the test's.
    """
    told, name = benchmarks()[test], name or test
    of: dict[str, list[Item]] = {}
    for item in items:
        of.setdefault(item.picture, []).append(item)
    kept = list(of)[: settings.limit]
    lacking = [picture for picture in kept if not of[picture][0].images]
    found = find_pictures(lacking, settings.images, name, told.get("pictures", ""), places) if lacking else {}
    shown = [
        item if item.images else replace(item, images=(found[item.picture],))
        for picture in kept
        for item in of[picture]
    ]
    tokens = told["tokens"]
    if settings.preset == PAPER and told.get("paper_tokens"):  # AGLA's runs (its repository at efa1263)
        tokens = 256 if "instructblip" in settings.model.lower() else 1024
    prompt = told.get("prompt", shown[0].prompt if shown else "")
    start = {"source": told["source"].format(items=len(shown)), "protocol": told["protocol"], "prompt": prompt}
    return EvalTask(
        name,
        told["kind"],
        shown,
        settings.max_new_tokens or tokens,
        split=settings.split,
        about=start | dict(about or {}),
    )
