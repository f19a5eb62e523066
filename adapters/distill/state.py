"""What a training leaves on disk, so that it goes on where it stopped and is never taken for another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lvlm_guard.adapters.distill.errors import DistillError
from lvlm_guard.files import whole

CHECKPOINTS, DONE = "checkpoints", "training.json"


def finished(folder: Path, told: dict[str, Any]) -> bool:
    """Tell whether a folder holds the adapter of this training.

    Raises:
        DistillError: it holds that of another one.
    """
    done = read_json(folder / DONE)
    if done is None:
        return False
    if {key: done.get(key) for key in told} != told:
        raise DistillError(
            f"{folder} holds an adapter of another training ({_differing(done, told)}). Give another --out, or "
            "--retrain to train anew on the same answers."
        )
    return True


def begin(state: Path, told: dict[str, Any]) -> None:
    """Note which training the checkpoints in a folder are of.

    Raises:
        DistillError: they are of another one.
    """
    begun = read_json(state / "begun.json")
    if begun is not None and begun != told:
        raise DistillError(
            f"{state} holds checkpoints of another training ({_differing(begun, told)}). Give another --out, or "
            "--retrain to train anew on the same answers."
        )
    if begun is None:
        state.mkdir(parents=True, exist_ok=True)
        write_json(state / "begun.json", told)


def _differing(before: dict[str, Any], now: dict[str, Any]) -> str:
    old, new = ({**told.get("recipe", {}), "seed": told.get("seed")} for told in (before, now))
    return ", ".join(f"{key} {old.get(key)}, now {new[key]}" for key in new if old.get(key) != new[key])


def last_checkpoint(state: Path) -> Path | None:
    """Return the newest checkpoint that was written whole: its state is written last."""
    found = [path for path in state.glob("checkpoint-*") if read_json(path / "trainer_state.json") is not None]
    return max(found, key=lambda path: int(path.name.partition("-")[2]), default=None)


def read_json(path: Path) -> Any:
    """Return what a file holds; None where it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all, its folder made if need be."""
    with whole(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
