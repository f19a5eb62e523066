"""Files that are there whole or not at all, notes among them, and where fetched and found things are kept."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole(path: Path, shared: bool = False) -> Iterator[Path]:
    """Give a place beside a file to write to, its folder made if need be.

    Written to the end it takes the file's place, so that whoever reads, or whenever the process dies, the file is the
    old or the new one; otherwise it goes. Where it is `shared`, several processes write each in a place of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part" if shared else f"{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def caches() -> Path:
    """Return the user's folder of caches: `$XDG_CACHE_HOME`, else `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def plain(content: Any) -> Any:
    """Return content as JSON data."""
    return json.loads(json.dumps(content, default=str))


def read_json(path: Path) -> Any:
    """Return what a file holds; None where it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all, its folder made if need be."""
    with whole(path) as part:
        part.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in what two notes differ, within 400 characters; "" in nothing."""

    def flat(told: Mapping[str, Any]) -> dict[str, Any]:
        parts = [part if isinstance(part, dict) else {name: part} for name, part in told.items()]
        return {key: value for part in parts for key, value in part.items()}

    old, new = flat(before), flat(now)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {old.get(name)!r}, now {new.get(name)!r}" for name in names)[:400]
