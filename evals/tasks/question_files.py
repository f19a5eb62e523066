"""Which question file is of which data set and kind, and which task of the run asks it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_guard.evals.decoders.decoder import PAPER
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.fetching import IMANGE, QUESTIONS, fetch
from lvlm_guard.evals.tasks.pope_questions import Kind, Question, file_text, identify, read_questions

KINDS: tuple[Kind, ...] = ("random", "popular", "adversarial")
DATA_SETS = ("coco", "aokvqa", "gqa")
MISSPELT = "coco adversarial (57 texts end in 'imange')"


@dataclass(frozen=True)
class QuestionFile:
    """A question file.

    Args:
        path: where it is.
        data_set: "coco", "aokvqa", "gqa", or "" where neither content nor name tells.
        row: the result row that its questions count in.
        published: which published file it is, byte for byte but line ends; None: another one.
    """

    path: Path
    data_set: str
    row: str
    published: str | None

    def questions(self) -> list[Question]:
        """Return its questions; raises `DataError`."""
        return read_questions(self.path)

    def describe(self, questions: Sequence[Question]) -> dict[str, Any]:
        """Return what a report says of it."""
        return {
            "file": self.path.name,
            "sha256": hashlib.sha256(file_text(self.path).encode()).hexdigest()[:16],
            "published": self.published,
            "row": self.row,
            "questions": len(questions),
            "pictures": len({q.image for q in questions}),
            "yes": sum(q.label == "yes" for q in questions),
        }

    def warning(self, questions: Sequence[Question], paper: bool) -> str:
        """Return what to know before its numbers are compared with published ones; "" for nothing."""
        if self.published is None and self.data_set and not any(q.split == "val" for q in questions):
            return (
                f"{self.path.name} is none of the published files for {self.data_set} (SHA-256 "
                f"{self.describe(questions)['sha256']}): its numbers do not compare with published ones."
            )
        if self.published == MISSPELT and not paper:
            return (
                f"{self.path.name} is AGLA's and VCD's copy, where 57 questions end in 'imange'; without --questions "
                "the repaired one is fetched."
            )
        if paper and (self.data_set, self.row) == ("coco", "pope_adversarial") and self.published != MISSPELT:
            return f"{self.path.name} is not AGLA's copy, where 57 questions end in 'imange'."
        return ""


def published_files(data_set: str, paper: bool) -> list[QuestionFile]:
    """Return the three published files of a data set, fetched where they are not at hand."""
    wanted = {kind: QUESTIONS[data_set, kind] for kind in KINDS}
    if paper and data_set == "coco":
        wanted["adversarial"] = IMANGE
    paths = {kind: fetch(published, f"pope/{data_set}") for kind, published in wanted.items()}
    return [QuestionFile(path, data_set, f"pope_{kind}", identify(path)) for kind, path in paths.items()]


def files_of(task: str, settings: Settings) -> list[QuestionFile]:
    """Return the files of `--questions` that a task asks: random, popular, adversarial, others.

    Of a folder, files of data sets that the run does not ask are left out; a file that is named itself is asked.

    Raises:
        DataError: a file is not there, or no task of the run asks it.
    """
    named, found = _given(settings)
    given = [*named, *found]
    described = [_described(path, len(given)) for path in given]
    mine = [file for file in described if _asked_by(file, settings, file.path in named) == task]
    both = [f for f in mine if f.published and f.published.startswith("coco adversarial")]
    if len(both) > 1:  # the folder of both copies: the preset says which
        mine = [f for f in mine if f not in both or (f.published == MISSPELT) == (settings.preset == PAPER)]
    order = [f"pope_{kind}" for kind in KINDS]
    return sorted(mine, key=lambda file: order.index(file.row) if file.row in order else len(order))


def list_of_pictures(path: Path) -> bool:
    """Whether a file is a list of pictures to describe, as AGLA's, and no question file."""
    try:
        row = json.loads(next((line for line in file_text(path).splitlines() if line.strip()), ""))
    except json.JSONDecodeError:
        return False
    asks = isinstance(row, dict) and str(row.get("text", "")).rstrip().endswith("?")
    return isinstance(row, dict) and "image" in row and "label" not in row and not asks


def _given(settings: Settings) -> tuple[list[Path], list[Path]]:
    """Return the files of `--questions`: those named, and those found in folders."""
    named: dict[Path, None] = {}
    found: dict[Path, None] = {}
    for name in settings.questions:
        path = Path(name)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*pope*.json*") if _kind(file))
            if not inside:
                raise DataError(
                    f"{path} holds no question file: in a folder those named like coco_pope_random.json are taken. "
                    "Name the files one by one otherwise."
                )
            found |= dict.fromkeys(inside)
        elif not list_of_pictures(path):
            named[path] = None
    return list(named), [path for path in found if path not in named]


def _described(path: Path, files: int) -> QuestionFile:
    published = identify(path)
    data_set = published.split()[0] if published else next((n for n in DATA_SETS if n in _words(path)), "")
    kind = published.split()[1] if published else _kind(path)
    stem = re.sub(r"[^a-z0-9]+", "_", path.name.partition(".")[0].lower()).strip("_")
    own = "pope" if files == 1 else f"pope_{stem}"
    return QuestionFile(path, data_set, f"pope_{kind}" if kind else own, published)


def _kind(path: Path) -> str:
    return next((kind for kind in KINDS if kind in _words(path)), "")


def _words(path: Path) -> list[str]:
    return re.findall("[a-z]+", path.name.lower())


def _asked_by(file: QuestionFile, settings: Settings, named: bool) -> str:
    tasks = [task for task in settings.tasks if task == "pope" or task in {f"pope_{name}" for name in DATA_SETS}]
    if file.data_set and f"pope_{file.data_set}" in tasks:
        return f"pope_{file.data_set}"
    if "pope" in tasks:
        return "pope"
    if not file.data_set and len(tasks) == 1:
        return tasks[0]
    if file.data_set and not named:
        return ""
    if file.data_set:
        raise DataError(
            f"{file.path} is of {file.data_set}, and no task of this run asks it ({', '.join(settings.tasks)}): add "
            f"pope_{file.data_set}, or leave the file out."
        )
    raise DataError(
        f"Neither content nor name tells which of {', '.join(tasks)} {file.path} is for: name it like "
        f"coco_{file.path.name}."
    )
