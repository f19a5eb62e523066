"""Published tests as tasks: `benchmarks.toml` says how each is asked and scored, and where its files are.

A test's own module reads its rows and says what is right; finding files and pictures and making the task is the same
for all, and is done before any model is loaded. Texts are fetched from their authors' repositories at pinned commits,
kept in `$XDG_CACHE_HOME/lvlm-guard` (else `~/.cache/lvlm-guard`), and read from there afterwards; pictures are the
user's.
"""

from __future__ import annotations

import tomllib
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from lvlm_guard.evals.decoders.decoder import PAPER
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.files import caches, whole

STOCK_SUFFIX = "\nAnswer the question using a single word or phrase."
"""What follows yes/no questions in lmms-eval's tasks."""

SECONDS = 30.0  # how long a server may stay silent

FOLDERS = ("", "val2014", "train2014", "images", "coco/val2014", "coco/train2014", "gqa", "gqa/images")
"""Where a picture may lie below `--images`, so that one folder can serve several data sets."""


@dataclass(frozen=True)
class Published:
    """A file of a pinned commit: its address, and the SHA-256 of its bytes."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@cache
def benchmarks() -> dict[str, dict[str, Any]]:
    """Return what `benchmarks.toml` says."""
    return tomllib.loads(files("lvlm_guard.evals").joinpath("tasks/benchmarks.toml").read_text(encoding="utf-8"))


def published(test: str) -> dict[str, Published]:
    """Return the published files of a test, by their paths in its repository."""
    told = benchmarks()[test]
    return {path: Published(f"{told['at']}/{path}", sha256) for path, sha256 in told["files"].items()}


def cache_folder() -> Path:
    return caches() / "lvlm-guard"


def fetch(file: Published, folder: str = "pope", option: str = "--questions") -> Path:
    """Return a published file, from `folder` of the cache or fetched into it. `option` is where a user can give the
    file instead. Raises `DataError` where it can't be fetched (and says where to put it by hand), or another file
    came."""
    # the digest keeps two files of one name apart
    path = cache_folder() / folder / file.sha256[:8] / file.name
    if path.is_file() and sha256(path.read_bytes()).hexdigest() == file.sha256:
        return path
    try:
        with urllib.request.urlopen(file.url, timeout=SECONDS) as answer:
            content: bytes = answer.read()
    except (OSError, ValueError) as error:
        why = f"{file.name} can't be fetched ({getattr(error, 'reason', error)})"
        raise DataError(f"{why}. Get {file.url} elsewhere, put it at {path}, or give it with {option}.") from error
    if (digest := sha256(content).hexdigest()) != file.sha256:
        told = f"{len(content)} bytes that are not the published file (SHA-256 {digest[:16]}, not {file.sha256[:16]})"
        raise DataError(f"{file.url} gave {told}. Get it another way, and give it with {option}.")
    try:
        with whole(path, shared=True) as part:
            part.write_bytes(content)
    except OSError as error:
        why = f"{path} can't be written ({error.strerror or error})"
        raise DataError(f"{why}: set XDG_CACHE_HOME to a folder that can, or give {option}.") from error
    return path


def copied(test: str, name: str, folder: str | Path, option: str) -> Path:
    """Return a published file of a test: of a copy of its repository (.gz too), or fetched where `folder` is ""."""
    if not str(folder):
        return fetch(next(file for file in published(test).values() if file.name == name), test, option)
    for place in (Path(folder, part) for part in benchmarks()[test]["folders"]):
        for path in (place / name, place / f"{name}.gz"):
            if path.is_file():
                return path
    raise DataError(f"{folder} holds no {name}. {benchmarks()[test]['needs']}.")


def given(test: str, settings: Settings) -> list[Path]:
    """Return the user's files of a test: those of `--questions`, and of folders there its own; raises `DataError`."""
    told = benchmarks()[test]
    found: list[Path] = []
    for path in map(Path, settings.questions):
        found += sorted(path.glob(told["questions"])) if path.is_dir() else [path] if told.get("any_file") else []
    if not found:
        raise DataError(f"{test} needs its questions: {told['needs']}.")
    return found


def check_split(test: str, settings: Settings) -> None:
    """Raise `DataError` where a run would choose settings on a published test."""
    if settings.split == "val" and benchmarks().get(test, {}).get("test_only"):
        raise DataError(f"{test} is a published test, and settings must not be chosen on it: sweep on another task.")


def made(
    test: str,
    settings: Settings,
    items: Iterable[Item],
    about: Mapping[str, Any] | None = None,
    *,
    name: str = "",
    places: Callable[[str], Iterable[str]] = lambda picture: [picture],
) -> EvalTask:
    """Return a test as a task, picture by picture: of the first `limit` pictures, each with its file. `test` is as in
    `benchmarks.toml`; pictures of `items` that have none are looked for, as `find_pictures` does with `places`; `about`
    is what a report says beside source, protocol and prompt, or instead."""
    told, name = benchmarks()[test], name or test
    of: dict[str, list[Item]] = {}
    for item in items:
        of.setdefault(item.picture, []).append(item)
    kept = list(of)[: settings.limit]
    lacking = [picture for picture in kept if not of[picture][0].images]
    found = find_pictures(lacking, settings.images, name, told.get("pictures", ""), places) if lacking else {}
    shown = [replace(item, images=item.images or (found[picture],)) for picture in kept for item in of[picture]]
    tokens = settings.max_new_tokens or told["tokens"]
    if not settings.max_new_tokens and settings.preset == PAPER and told.get("paper_tokens"):
        tokens = 256 if "instructblip" in settings.model.lower() else 1024  # AGLA's runs (its repository at efa1263)
    prompt = told.get("prompt", shown[0].prompt if shown else "")
    start = {"source": told["source"].format(items=len(shown)), "protocol": told["protocol"], "prompt": prompt}
    return EvalTask(name, told["kind"], shown, tokens, split=settings.split, about=start | dict(about or {}))


def find_pictures(
    names: Iterable[str], folder: str, task: str, data_set: str, places: Callable[[str], Iterable[str]]
) -> dict[str, Path]:
    """Return the file of each picture, in `folder` (`--images`) or `FOLDERS` below it; `places` are paths of a name
    there. `data_set` is one of "pictures" in `benchmarks.toml`; "": COCO's or GQA's, as the names tell. Raises
    `DataError` where no folder was given, pictures are missing, or a file is none."""
    wanted = list(dict.fromkeys(names))
    data_set = data_set or ("coco" if any("COCO_" in name for name in wanted) else "gqa")
    root = check_folder(folder, task, data_set)
    inside = [root / part for part in FOLDERS if (root / part).is_dir()]
    found: dict[str, Path] = {}
    broken: list[Path] = []
    for name in wanted:
        if path := next((p for part in inside for place in places(name) if (p := part / place).is_file()), None):
            found[name] = path
            try:
                Image.open(path).close()
            except (UnidentifiedImageError, OSError, ValueError):
                broken.append(path)
    if missing := [name for name in wanted if name not in found]:
        told = f"{len(missing)} of {len(wanted)} pictures of {task} are not in {folder}; the first is {missing[0]}"
        raise DataError(f"{told}. {benchmarks()['pictures'][data_set]}.")
    if broken:
        told = f"{len(broken)} of {len(wanted)} pictures of {task} are empty or no pictures; the first is {broken[0]}"
        raise DataError(f"{told} ({broken[0].stat().st_size} bytes): get them again.")
    return found


def check_folder(folder: str, task: str, data_set: str) -> Path:
    """Return the folder of `--images`; raises `DataError` where none was given or it is none."""
    if not folder:
        where = benchmarks()["pictures"][data_set]
        raise DataError(f"{task} needs pictures: give their folder with --images. {where}.")
    if not Path(folder).is_dir():
        raise DataError(f"--images {folder} is no folder: the pictures of {task} are looked for there.")
    return Path(folder)
