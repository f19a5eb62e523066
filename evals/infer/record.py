"""What a run is: `asked.json`, which decides whether answers in a folder may be gone on with, and `items.jsonl`.

Identity is what decides answers: settings, questions, weights, decoders, number format and device, versions of
packages, and the source of what asks. What scores, reports or spreads the work over processes is not part of it.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import lvlm_guard
from lvlm_guard.cli.console import installed
from lvlm_guard.evals.decoders.lineup import adapters_of
from lvlm_guard.evals.errors import DataError, RunError, disk_trouble
from lvlm_guard.evals.spec.items import EvalTask
from lvlm_guard.evals.spec.jsonl import write_lines
from lvlm_guard.evals.spec.settings import EMBEDDED, Settings
from lvlm_guard.files import plain
from lvlm_guard.weights import weights_digest

ASKED, ITEMS = "asked.json", "items.jsonl"
MADE = ("answers.parquet", "costs.parquet", "results.json", "report.html", ITEMS, ASKED)
DECIDES = ("settings", "questions", "code", "weights", "packages")  # known before a model is loaded
ANSWERING = ("decoders", "matcher", "where")  # known once it is
PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pillow", "peft")  # that decide answers
BESIDE = ("scipy", "pyarrow", "openai", "lmms-eval", "datasets")  # that are told beside them
ASKING = ("spec", "infer", "decoders", "tasks")  # packages of this room that decide answers
# folders and files that decide none, and rooms
NOT_ASKING = ("report", "cli", "bench", "verify", "files.py", "progress.py", "adapters", "evals", "play", "serve")
# modules that make or judge the embedded models, whose weights are digested themselves
MAKING = ("accept", "build")

HELD = "Another process is working in {}: wait for it, or give another --out."
LEFT = "give another --out, or --start-over to drop them."

Note = dict[str, Any]


@contextmanager
def hold(folder: Path, rank: int = 0, world: int = 1, wait: float = 5.0) -> Iterator[None]:
    """Hold a rank's place in a folder, so that no two processes ever ask the same questions for it. Ranks of another
    world size keep it out as well. Raises `RunError` where one is at work there, after some seconds' wait for a process
    that is just ending."""
    with ExitStack() as stack:
        try:
            stack.enter_context(_lock(folder, f".rank-{rank}.lock").acquire(timeout=wait))
            taken = busy(folder, world, wait)
        except Timeout:
            taken = True
        if taken:
            raise RunError(HELD.format(folder))
        yield


def busy(folder: Path, world: int = 0, wait: float = 0.0) -> bool:
    """Return whether a rank from `world` on is at work in a folder; one that has its own place let go of it before."""
    for path in folder.glob(".rank-*.lock"):
        if int(path.stem.rpartition("-")[2]) >= world:
            try:
                with FileLock(path).acquire(timeout=wait):
                    pass
            except Timeout:
                return True
    return False


def alone(folder: Path) -> FileLock:
    """Return the lock that holds a folder against all other processes for a moment; they wait."""
    return _lock(folder, ".lock")


def _lock(folder: Path, name: str) -> FileLock:
    with disk_trouble(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / name)


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
    """Note what this run is, or find that the folder has it already; returns the note. Arguments as `infer.ask.ask`'s.
    Raises `DataError` (the folder holds another run), `RunError` (a process works in it, or the disk is full)."""
    parts = [part for task in tasks for part in task.parts()]
    decides: Note = {
        "settings": plain(settings.to_dict()),
        "questions": {f"{part.name} {part.split}": part.digest() for part in parts},
        "code": code_digest(adapters=bool(settings.adapters or settings.matchers), beside=beside),
        "weights": plain(weights_digest(weights_of(settings))),
        "packages": _versions(PACKAGES),
    }
    with alone(folder):
        earlier = None if started_over else read_note(folder)
        if earlier is not None:
            differing = _differences(earlier, decides)
            if not differing:
                return earlier
            if not (replaces and earlier.get("command") == command):
                told = f"other {', '.join(differing)}, whose answers can't be mixed with these"
                raise DataError(f"{folder} holds a run with {told}. Give another --out, or --start-over.")
        elif not started_over and any((folder / "answers").glob("*.jsonl")):
            raise DataError(f"{folder} holds answers of an unknown run: copy its {ASKED} beside them, {LEFT}")
        if busy(folder):
            raise RunError(HELD.format(folder))
        for name in MADE:
            (folder / name).unlink(missing_ok=True)
        for name in ("answers", "evidence"):
            shutil.rmtree(folder / name, ignore_errors=True)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        note = {"command": command, "version": lvlm_guard.__version__, "started": started, **decides}
        note |= {"tasks": [task.describe() for task in tasks], "environment": environment()}
        named = (({"task": part.name, "split": part.split, "kind": part.kind}, part.items) for part in parts)
        rows = (known | item.describe() for known, items in named for item in items)
        write_lines(folder / ITEMS, (json.dumps(row, default=str) for row in rows))
        write_lines(folder / ASKED, [json.dumps(note, indent=1, ensure_ascii=False)])
        return note


def with_answering(folder: Path, answering: Mapping[str, Any]) -> Note:
    """Note who answers too (`Prepared.describe()`), known once the model is loaded or the server was asked. It follows
    from the settings, but for what a hub's model has become since, a rank's device, or a server's knobs. Returns the
    note; raises `DataError` where answers in the folder were made by others."""
    answering = plain(answering)
    with alone(folder):
        note = read_note(folder)
        if note is None:
            raise DataError(f"{folder / ASKED} is gone: give the same command again.")
        if "identity" not in note:
            told = json.dumps([{**note, **answering}[name] for name in (*DECIDES, *ANSWERING)], sort_keys=True)
            note |= {**answering, "identity": sha256(told.encode()).hexdigest()[:16]}
            write_lines(folder / ASKED, [json.dumps(note, indent=1, ensure_ascii=False)])
        elif differing := [name for name in ANSWERING if note[name] != answering[name]]:
            made = f"other {', '.join(differing)} than now, as by other knobs of a server or a changed hub model"
            raise DataError(f"The answers in {folder} were made with {made}. Bring it back (--revision), {LEFT}")
        return note


def read_note(folder: Path) -> Note | None:
    """Return the note of a run; None where there is none; raises `DataError` where it can't be read."""
    try:
        note = json.loads((folder / ASKED).read_text(encoding="utf-8"))
        if not isinstance(note, dict):
            raise ValueError("no object")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / ASKED} can't be read ({error}): {LEFT}") from error
    return note


def weights_of(settings: Settings) -> list[Path]:
    """Return the local folders whose weights decide the answers; none for a hub id or a server."""
    from lvlm_guard.embedded import MATCHER, MODEL

    if settings.server:
        return []
    own = [MODEL, MATCHER] if settings.model == EMBEDDED else [Path(settings.model)]
    beside = (*adapters_of(settings).values(), *settings.matchers.values())
    return [path for path in (*own, *(Path(place) for places in beside for place in places)) if path.is_dir()]


def _versions(names: Iterable[str]) -> dict[str, str]:
    return {name: version for name in names if (version := installed(name))}


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    found = []
    for key, value in now.items():
        before = earlier.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            found += _differences({**dict.fromkeys(value), **before}, {**dict.fromkeys(before), **value}, f"{key}.")
        elif before != value:
            both = (json.dumps(one) for one in (before, value))
            was, is_ = (text if len(text) <= 40 else text[:37] + "..." for text in both)
            found.append(f"{path}{key} ({was}, now {is_})")
    return found


def code_digest(*, adapters: bool = True, beside: Iterable[str] = ()) -> str:
    """Return a digest of the source that decides answers, so that those of other code are not taken for this code's.
    What scores, reports, serves, trains or prints is left out: to mend it costs no run. `adapters`: whether their room
    decides, too; `beside`: folders and files below the package that decide as well, as of a study."""
    root = Path(lvlm_guard.__file__).parent
    core = (path for path in root.rglob("*.py") if path.relative_to(root).parts[0] not in NOT_ASKING)
    deciding = {path for path in core if path.stem not in MAKING}
    # the rooms are links in a checkout, which rglob does not follow
    for room in map(root.joinpath, [*(f"evals/{name}" for name in ASKING), *["adapters"] * adapters, *beside]):
        deciding.update([room] if room.is_file() else room.rglob("*.py"))
    digest = sha256()
    for path in sorted(deciding):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def environment() -> dict[str, Any]:
    """Return versions, machine and commit ("+changes" where it was edited, None without one), as reports tell them."""
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    found = {"python": platform.python_version(), **_versions((*PACKAGES, *BESIDE)), "machine": machine}
    root, commit = Path(lvlm_guard.__file__).resolve().parents[1], None
    if (root / ".git").exists():
        told = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
        try:
            done = subprocess.run(told, cwd=root, capture_output=True, text=True, timeout=10, check=True)
            commit = done.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            pass
    return {**found, "commit": commit}
