"""Which question file is of which data set and kind, where the published ones are, and which task asks which."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lvlm_guard.evals.decoders.decoder import PAPER
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.spec.jsonl import content, numbered
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.benchmark import fetch, published
from lvlm_guard.evals.tasks.pope.questions import KINDS, Question, read_questions

DATA_SETS = ("coco", "aokvqa", "gqa")
_COPIES = {(path.split("/")[0], Path(path).stem.rpartition("_")[2]): f for path, f in published("pope_vcd").items()}

IMANGE = _COPIES["coco", "adversarial"]
"""The adversarial COCO file that AGLA and VCD used: 57 questions end in "imange"."""

QUESTIONS = _COPIES | {("coco", "adversarial"): published("pope_authors")["coco/coco_pope_adversarial.json"]}
"""(data set, kind) -> POPE's question file; of the adversarial COCO one the repaired copy."""

MISSPELT = "coco adversarial (57 texts end in 'imange')"
PUBLISHED = {file.sha256[:16]: " ".join(key) for key, file in _COPIES.items()} | {
    IMANGE.sha256[:16]: MISSPELT,
    "44bfb0b27f0d438e": "coco adversarial (repaired)",
    "f31727768b228d04": "coco popular (AGLA's copy, without the last newline)",
}
"""First 16 digits of SHA-256, line ends as LF -> which published file it is."""

REPOPE = tuple(file.sha256[:16] for file in published("repope").values())
"""The same of RePOPE's files (arXiv:2504.15707), whose labels are others."""


@dataclass(frozen=True)
class QuestionFile:
    """A question file."""

    path: Path
    data_set: str  # "" where neither content nor name tells
    row: str  # what its questions count in
    published: str | None  # which published file it is, byte for byte but line ends; None: another one

    @property
    def kind(self) -> str:
        """Its row without the benchmark's name; "" where it is that alone."""
        return self.row.removeprefix("pope").lstrip("_")

    @cached_property
    def questions(self) -> list[Question]:
        """Its questions; raises `DataError`."""
        return read_questions(self.path)

    def describe(self) -> dict[str, Any]:
        """Return what a report says of it."""
        told = {"file": self.path.name, "sha256": _digest(self.path), "published": self.published, "row": self.row}
        pictures, yes = {q.image for q in self.questions}, sum(q.label == "yes" for q in self.questions)
        return told | {"questions": len(self.questions), "pictures": len(pictures), "yes": yes}

    def warnings(self, paper: bool) -> list[str]:
        """Return what to know before its numbers are compared with published ones."""
        name, adversarial = self.path.name, (self.data_set, self.row) == ("coco", "pope_adversarial")
        found = []
        if self.published is None and self.data_set and not any(q.split == "val" for q in self.questions):
            known = f"the published files for {self.data_set} (SHA-256 {_digest(self.path)})"
            found.append(f"{name} is none of {known}: its numbers do not compare with published ones.")
        elif self.published == MISSPELT and not paper:
            told = "AGLA's and VCD's copy, where 57 questions end in 'imange'; without --questions the repaired one is"
            found.append(f"{name} is {told} fetched.")
        elif paper and adversarial and self.published != MISSPELT:
            found.append(f"{name} is not AGLA's copy, where 57 questions end in 'imange'.")
        return found


def identify(path: str | Path) -> str | None:
    """Return which published file this is, whatever its line ends; None where it is none of them."""
    return PUBLISHED.get(_digest(path))


def _digest(path: str | Path) -> str:
    return hashlib.sha256(content(path).replace(b"\r\n", b"\n")).hexdigest()[:16]


def published_files(data_set: str, paper: bool) -> list[QuestionFile]:
    """Return the three published files of a data set, fetched where they are not at hand."""
    wanted = {kind: QUESTIONS[data_set, kind] for kind in KINDS}
    if paper and data_set == "coco":
        wanted["adversarial"] = IMANGE
    paths = {kind: fetch(file, f"pope/{data_set}") for kind, file in wanted.items()}
    return [QuestionFile(path, data_set, f"pope_{kind}", identify(path)) for kind, path in paths.items()]


def files_of(task: str, settings: Settings) -> list[QuestionFile]:
    """Return the files of `--questions` that a task asks: random, popular, adversarial, others.

    Of a folder, files of data sets that the run does not ask are left out; one that is named itself and that no task
    asks is a `DataError`, as is RePOPE's.
    """
    named: dict[Path, None] = {}
    found: dict[Path, None] = {}
    for path in map(Path, settings.questions):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*pope*.json*") if _word(p, KINDS) and _digest(p) not in REPOPE)
            if not inside:
                raise DataError(
                    f"{path} holds no question file: in a folder those named like coco_pope_random.json are taken. "
                    "Name the files one by one otherwise."
                )
            found |= dict.fromkeys(inside)
        elif not list_of_pictures(path):
            named[path] = None
    given = list(named | found)
    files = [described(path, len(given)) for path in given]
    mine = [file for file in files if _asked_by(file, settings, file.path in named) == task]
    both = [f for f in mine if f.published and f.published.startswith("coco adversarial")]
    if len(both) > 1:  # the folder of both copies: the preset says which
        mine = [f for f in mine if f not in both or (f.published == MISSPELT) == (settings.preset == PAPER)]
    order = [f"pope_{kind}" for kind in KINDS]
    return sorted(mine, key=lambda file: order.index(file.row) if file.row in order else len(order))


def list_of_pictures(path: Path) -> bool:
    """Whether a file is a list of pictures to describe, as AGLA's, and no question file."""
    try:
        row = next((row for _, row in numbered(path)), None)
    except DataError:
        return False
    if not isinstance(row, dict) or "image" not in row or "label" in row:
        return False
    return not str(row.get("text", "")).rstrip().endswith("?")


def described(path: Path, files: int) -> QuestionFile:
    """Return what is known of a question file, one of `files`; raises `DataError` where it is RePOPE's."""
    if _digest(path) in REPOPE:
        raise DataError(
            f"{path} is RePOPE's: its labels are others than POPE's, and questions are left out. Ask POPE's questions, "
            "and score the same answers by RePOPE's labels with the task repope (--repope FOLDER)."
        )
    known = identify(path)
    data_set, kind = known.split()[:2] if known else (_word(path, DATA_SETS), _word(path, KINDS))
    stem = re.sub(r"[^a-z0-9]+", "_", path.name.partition(".")[0].lower()).strip("_")
    own = "pope" if files == 1 else f"pope_{stem}"
    return QuestionFile(path, data_set, f"pope_{kind}" if kind else own, known)


def _word(path: Path, words: Sequence[str]) -> str:
    """Return the first of some words that a file's name has; "" for none."""
    return next((word for word in words if word in re.findall("[a-z]+", path.name.lower())), "")


def _asked_by(file: QuestionFile, settings: Settings, named: bool) -> str:
    own = f"pope_{file.data_set}"
    tasks = [task for task in settings.tasks if task in ("pope", *(f"pope_{name}" for name in DATA_SETS))]
    if own in tasks or "pope" in tasks:
        return own if own in tasks else "pope"
    if not file.data_set and len(tasks) == 1:
        return tasks[0]
    if not file.data_set:
        raise DataError(
            f"Neither content nor name tells which of {', '.join(tasks)} {file.path} is for: name it like "
            f"coco_{file.path.name}."
        )
    if named:
        raise DataError(
            f"{file.path} is of {file.data_set}, and no task of this run asks it ({', '.join(settings.tasks)}): add "
            f"{own}, or leave the file out."
        )
    return ""
