"""Read what a folder or a hub holds, and say in one way what to do where it can't be had."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from hashlib import file_digest, sha256
from pathlib import Path
from typing import TypeVar

from lvlm_guard.errors import GuardError, WeightsError

T = TypeVar("T")


def read(
    what: str, place: str, load: Callable[[], T], *, absent: str, damaged: str = "The folder is incomplete or damaged."
) -> T:
    """Return what `load` reads; raises `WeightsError` where it can't, for whatever reason.

    Args:
        what: how to call it in a message: "The matcher 'x'".
        place: the folder or hub id that it is read from.
        absent, damaged: what to do where the hub did not give it, and where the folder is there but can't be read.
    """
    try:
        return load()
    except GuardError:
        raise
    except Exception as error:  # the hub, the network, safetensors and torch raise dozens of kinds here
        reason = " ".join(str(error).split())[:200]
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0") else ""
        advice = (
            damaged if Path(place).is_dir() else f"There is no such folder, nor did the hub give it{offline}. {absent}"
        )
        raise WeightsError(f"{what} could not be loaded ({type(error).__name__}: {reason}). {advice}") from error


def how_to_fetch(source: str, use: str) -> str:
    """Say how to bring weights to a machine without a network; `use` shows how DIR is then named."""
    return (
        f"On a machine with network, `hf download {source}` fills the cache that is read offline too; or "
        f"`hf download {source} --local-dir DIR`, copy DIR here, and name it: {use}."
    )


def weights_digest(folders: Iterable[Path]) -> str | None:
    """Return a digest of the safetensors in some folders; None where there are none."""
    digest, paths = sha256(), sorted(path for folder in folders for path in folder.glob("*.safetensors"))
    for path in paths:
        with path.open("rb") as file:
            digest.update(file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16] if paths else None
