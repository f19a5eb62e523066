"""Files that are there whole or not at all, and where fetched and found things are kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path, shared: bool = False) -> Iterator[Path]:
    """Give a place beside a file to write to, its folder made if need be.

    Written to the end it takes the file's place, so that whoever reads, or whenever the process dies, the file is the
    old or the new one; otherwise it goes.

    Args:
        path: of the file.
        shared: whether several processes may write it at once, each beside in a place of its own.
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
