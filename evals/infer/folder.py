"""The folder of a run: held by one process, and never with the answers of two different runs in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lvlm_guard.evals.errors import DataError, RunError, disk_trouble
from lvlm_guard.evals.infer.identity import code_digest, environment, weights_digest
from lvlm_guard.evals.infer.prepare import weights_of
from lvlm_guard.evals.report.saved import BEGUN, write_whole
from lvlm_guard.evals.spec.items import EvalTask
from lvlm_guard.evals.spec.settings import Settings


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder, so that two processes never write one run."""
    with disk_trouble(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    with lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no such locks on this system
            pass
        except OSError:
            raise RunError(f"Another process is working in {folder}: wait for it, or give another --out.") from None
        yield


def begin(
    folder: Path,
    settings: Settings,
    tasks: Sequence[EvalTask],
    command: str,
    started_over: bool,
    replaces: bool,
) -> dict[str, Any]:
    """Note what this run is, or find that the folder has it already; returns the note."""
    decides = {
        "command": command,
        "settings": settings.to_dict(),
        "code": code_digest(),
        "weights": weights_digest(weights_of(settings)),
        "tasks": {task.name: task.digest() for task in tasks},
        "environment": {name: value for name, value in environment().items() if name != "commit"},
    }
    decides = json.loads(json.dumps(decides, default=str))
    earlier = None if started_over else _earlier(folder)
    if earlier is not None:
        differing = _differences(earlier, decides)
        if not differing:
            return earlier
        if not (replaces and earlier.get("command") == command):
            raise DataError(
                f"{folder} holds a run with other {', '.join(differing)}, whose answers can't be mixed with these. "
                "Give another --out, or --start-over to drop it."
            )
        started_over = True
    strange = sorted((folder / "answers").glob("*.jsonl"))
    if strange and not started_over:
        raise DataError(f"{folder} holds answers of an unknown run: give another --out, or --start-over to drop them.")
    for path in strange:
        path.unlink()
    for name in ("run.json", "samples.jsonl", "report.html"):
        (folder / name).unlink(missing_ok=True)
    note: dict[str, Any] = decides | {"started": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": 0.0}
    write_begun(folder, note)
    return note


def with_answering(folder: Path, begun: dict[str, Any], answering: dict[str, Any]) -> dict[str, Any]:
    """Note who answers too, which is known once the model is loaded or the server was asked; returns the note.

    It follows from the settings, but for what a hub's model has become since, or with which knobs a server was started.

    Raises:
        DataError: the earlier part of the run was answered by others.
    """
    before = begun.get("answering")
    if before is None:
        begun = begun | {"answering": answering}
        write_begun(folder, begun)
    elif before != answering:
        differing = ", ".join(k for k in {**before, **answering} if before.get(k) != answering.get(k))
        raise DataError(
            f"The answers in {folder} were made with other {differing} than now, as by a server that was started anew "
            "with other knobs, or by a model that has changed on the hub. Bring it back (--revision), give another "
            "--out, or --start-over to drop them."
        )
    return begun


def _earlier(folder: Path) -> dict[str, Any] | None:
    try:
        note = json.loads((folder / BEGUN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{folder / BEGUN} can't be read ({error}): give another --out, or --start-over.") from error
    return dict(note) if isinstance(note, dict) else None


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    found = []
    for key, value in now.items():
        before = earlier.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            found += _differences({**dict.fromkeys(value), **before}, {**dict.fromkeys(before), **value}, f"{key}.")
        elif before != value:
            found.append(f"{path}{key} ({_short(before)}, now {_short(value)})")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def write_begun(folder: Path, begun: Mapping[str, Any]) -> None:
    """Write the note of a run that has begun, whole or not at all."""
    write_whole(folder, BEGUN, json.dumps(begun, indent=1) + "\n")
