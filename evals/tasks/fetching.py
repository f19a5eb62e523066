"""Texts of published tests, fetched from their authors' repositories at pinned commits and with known content.

Pictures are not fetched. A file is kept in `$XDG_CACHE_HOME/lvlm-guard` (else `~/.cache/lvlm-guard`) and read from
there afterwards, so a second run needs no network.
"""

from __future__ import annotations

import hashlib
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from lvlm_guard.evals.errors import DataError

SECONDS = 30.0
"""How long a server may stay silent."""


@dataclass(frozen=True)
class Published:
    """A file of a pinned commit: its address, and the SHA-256 of its bytes."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """Its file name."""
        return self.url.rpartition("/")[2]


def cache_folder() -> Path:
    """Return the folder that fetched files are kept in."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lvlm-guard"


def fetch(published: Published, folder: str = "pope", option: str = "--questions") -> Path:
    """Return a published file, from `folder` of the cache or fetched into it.

    `option` is where a user can give the file instead. Raises `DataError` where it can't be fetched (and says where to
    put it by hand), or another file came.
    """
    # the digest keeps two files of one name apart
    path = cache_folder() / folder / published.sha256[:8] / published.name
    if path.is_file() and _digest(path.read_bytes()) == published.sha256:
        return path
    try:
        with urllib.request.urlopen(published.url, timeout=SECONDS) as answer:
            content: bytes = answer.read()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{published.name} can't be fetched ({getattr(error, 'reason', error)}). Get {published.url} on a machine "
            f"with network, and put it at {path}, or give it with {option}."
        ) from error
    if _digest(content) != published.sha256:
        raise DataError(
            f"{published.url} gave {len(content)} bytes that are not the published file (SHA-256 "
            f"{_digest(content)[:16]}, should be {published.sha256[:16]}): something on the way changes downloads. Get "
            f"the file another way and give it with {option}."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise DataError(
            f"{path} can't be written ({error.strerror or error}): set XDG_CACHE_HOME to a folder that can, or give "
            f"the files with {option}."
        ) from error
    return path


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
