"""What a run is: `asked.json`, which decides whether answers in a folder may be gone on with, and `items.jsonl`.

Identity is what decides answers: settings, questions, weights, decoders, number format and device, versions of
packages, and the source of what asks. What scores, reports or spreads the work over processes is not part of it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import lvlm_guard
from lvlm_guard.evals.errors import DataError, RunError, disk_trouble
from lvlm_guard.evals.infer.identity import code_digest, environment, packages, weights_digest
from lvlm_guard.evals.infer.prepare import weights_of
from lvlm_guard.evals.spec.items import EvalTask
from lvlm_guard.evals.spec.settings import Settings

ASKED, ITEMS = "asked.json", "items.jsonl"
MADE = ("answers.parquet", "costs.parquet", "results.json", "report.html", ITEMS, ASKED)
DECIDES = ("settings", "questions", "code", "weights", "packages")  # known before a model is loaded
ANSWERING = ("decoders", "matcher", "where")  # known once it is

Note = dict[str, Any]


@contextmanager
def hold(folder: Path, rank: int = 0, world: int = 1, wait: float = 5.0) -> Iterator[None]:
    """Hold a rank's place in a folder, so that no two processes ever ask the same questions for it.

    Args:
        folder: made if need be.
        rank, world: of this process; ranks of another world size that are still at work keep it out as well.
        wait: seconds for a process that is just ending.

    Raises:
        RunError: another process is at work there.
    """
    with _free(_lock(folder, f".rank-{rank}.lock"), wait):
        _refuse_if_busy(folder, world, wait)
        yield


def busy(folder: Path) -> bool:
    """Return whether a rank is at work in a folder; one that has its own place let go of it before."""
    try:
        _refuse_if_busy(folder, 0)
    except RunError:
        return True
    return False


def alone(folder: Path) -> FileLock:
    """Return the lock that holds a folder against all other processes for a moment; they wait."""
    return _lock(folder, ".lock")


def _lock(folder: Path, name: str) -> FileLock:
    with disk_trouble(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / name)


def _free(lock: FileLock, wait: float) -> AbstractContextManager[object]:
    """Take a lock of a rank, to be held within; raises `RunError` where its process is at work."""
    try:
        return lock.acquire(timeout=wait)
    except Timeout:
        folder = Path(lock.lock_file).parent
        raise RunError(f"Another process is working in {folder}: wait for it, or give another --out.") from None


def begin(
    folder: Path,
    settings: Settings,
    tasks: Sequence[EvalTask],
    command: str = "eval ask",
    *,
    started_over: bool = False,
    replaces: bool = False,
    beside: Sequence[str] = (),
) -> Note:
    """Note what this run is, or find that the folder has it already; returns the note.

    Args:
        folder, settings, tasks: of the run.
        command: what the run is called in its files.
        started_over: drop what an earlier run left.
        replaces: drop another run of this command, instead of refusing.
        beside: further code that decides answers, see `code_digest`.

    Raises:
        DataError: the folder holds another run.
        RunError: it is to be dropped while a process works in it, or the disk is full.
    """
    decides = {
        "settings": settings.to_dict(),
        "questions": {f"{part.name} {part.split}": part.digest() for task in tasks for part in task.parts()},
        "code": code_digest(adapters=bool(settings.adapters or settings.matchers), beside=beside),
        "weights": weights_digest(weights_of(settings)),
        "packages": packages(),
    }
    decides = json.loads(json.dumps(decides, default=str))
    with alone(folder):
        earlier = None if started_over else read_note(folder)
        if earlier is not None:
            differing = differences(earlier, decides)
            if not differing:
                return earlier
            if not (replaces and earlier.get("command") == command):
                raise DataError(
                    f"{folder} holds a run with other {', '.join(differing)}, whose answers can't be mixed with these. "
                    "Give another --out, or --start-over to drop it."
                )
        elif not started_over and any((folder / "answers").glob("*.jsonl")):
            raise DataError(
                f"{folder} holds answers of an unknown run: copy its {ASKED} beside them, give another --out, or "
                "--start-over to drop them."
            )
        _drop(folder)
        note = {
            "command": command,
            "version": lvlm_guard.__version__,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            **decides,
            "tasks": [task.describe() for task in tasks],
            "environment": environment(),
        }
        with disk_trouble(folder):
            _write(folder / ITEMS, _rows(tasks))
            _write(folder / ASKED, [json.dumps(note, indent=1, ensure_ascii=False)])
        return note


def with_answering(folder: Path, answering: Mapping[str, Any]) -> Note:
    """Note who answers too, which is known once the model is loaded or the server was asked; returns the note.

    It follows from the settings, but for what a hub's model has become since, on which device a rank runs, or with
    which knobs a server was started. `answering` is `Prepared.describe()`.

    Raises:
        DataError: answers in the folder were made by others.
    """
    with alone(folder):
        note = read_note(folder)
        if note is None:
            raise DataError(f"{folder / ASKED} is gone: give the same command again.")
        if "identity" not in note:
            told = json.dumps([{**note, **answering}[name] for name in (*DECIDES, *ANSWERING)], sort_keys=True)
            note |= {**answering, "identity": sha256(told.encode()).hexdigest()[:16]}
            with disk_trouble(folder):
                _write(folder / ASKED, [json.dumps(note, indent=1, ensure_ascii=False)])
        elif differing := [name for name in ANSWERING if note[name] != answering[name]]:
            raise DataError(
                f"The answers in {folder} were made with other {', '.join(differing)} than now, as by a server that "
                "was started anew with other knobs, on another kind of device, or by a model that has changed on the "
                "hub. Bring it back (--revision), give another --out, or --start-over to drop them."
            )
        return note


def read_note(folder: Path) -> Note | None:
    """Return the note of a run; None where there is none; raises `DataError` where it can't be read."""
    try:
        note = json.loads((folder / ASKED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / ASKED} can't be read ({error}): give another --out, or --start-over.") from error
    if not isinstance(note, dict):
        raise DataError(f"{folder / ASKED} is no note of a run: give another --out, or --start-over.")
    return note


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """Return in words what two notes differ in."""
    found = []
    for key, value in now.items():
        before = earlier.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            found += differences({**dict.fromkeys(value), **before}, {**dict.fromkeys(before), **value}, f"{key}.")
        elif before != value:
            found.append(f"{path}{key} ({_short(before)}, now {_short(value)})")
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _write(path: Path, lines: Iterable[str]) -> None:
    """Write a file, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
    part.replace(path)


def _rows(tasks: Sequence[EvalTask]) -> Iterator[str]:
    for task in (part for whole in tasks for part in whole.parts()):
        known = {"task": task.name, "split": task.split, "kind": task.kind}
        yield from (json.dumps(known | item.describe(), default=str) for item in task.items)


def _drop(folder: Path) -> None:
    _refuse_if_busy(folder, 0)
    for name in MADE:
        (folder / name).unlink(missing_ok=True)
    for name in ("answers", "evidence"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _refuse_if_busy(folder: Path, world: int, wait: float = 0.0) -> None:
    """Raise `RunError` where a rank from `world` on is at work."""
    for path in folder.glob(".rank-*.lock"):
        if int(path.stem.rpartition("-")[2]) >= world:
            with _free(FileLock(path), wait):
                pass
