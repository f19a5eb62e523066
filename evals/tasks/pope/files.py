"""Which question file is of which data set and kind, where the published ones are, and which task asks which."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_guard.evals.decoders.decoder import PAPER
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.spec.jsonl import content, numbered
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.fetching import Published, fetch
from lvlm_guard.evals.tasks.pope.questions import KINDS, Question, read_questions

DATA_SETS = ("coco", "aokvqa", "gqa")
_VCD = (
    "https://raw.githubusercontent.com/DAMO-NLP-SG/VCD/d6568ff81b8fd306a49e630df44f2db5c2300191/experiments/data/POPE"
)
_POPE = "https://raw.githubusercontent.com/RUCAIBox/POPE/3df3ba1b110ecce25696989577fad583b67d4239/output"
_SHA256 = {
    ("coco", "random"): "ac25245170b975a5bdf9080b23fd431dfe6be458bc038259c1f4f09a6bef7994",
    ("coco", "popular"): "fa3a986eb3d586ceb527371112ad7170f398835cbe0a3f08a7e888771dbd8bd6",
    ("coco", "adversarial"): "185d7eb49958c882f15d46c51d5c0456fbd5efbf24c57ff8b7adc6648870c6ac",
    ("aokvqa", "random"): "900c244605e8d43626b9579a110e3631e534cddc2aff27fe91e3f080e15d4446",
    ("aokvqa", "popular"): "792d586a875c197362256b25e9252cc97df6fa1dca5aca72a53eba560414d6b7",
    ("aokvqa", "adversarial"): "87f9acb460fcb690f9120c6d69eb05cfedadab5af5eb385b5201fd48bfc6670c",
    ("gqa", "random"): "1c1117ce33df2eae0d7b04827896caff1f79dac7b99b9e1b0c87a415066cff98",
    ("gqa", "popular"): "e48e138bd61dd3bc4ec35cc8d4357b4dbfc68f0e704283a92217325585a17653",
    ("gqa", "adversarial"): "64a3bdeb8d24c02d175eafa5e1b24bc7fd611efa95bb87a031c880e548aef094",
}
_COPIES = {key: Published(f"{_VCD}/{key[0]}/{'_pope_'.join(key)}.json", sha) for key, sha in _SHA256.items()}

IMANGE = _COPIES["coco", "adversarial"]
"""The adversarial COCO file that AGLA and VCD used: 57 questions end in "imange"."""

QUESTIONS = _COPIES | {
    ("coco", "adversarial"): Published(
        f"{_POPE}/coco/coco_pope_adversarial.json", "420b3407db1fa9f1187a805dca41cb7b97fd91504e6c2179706188c107fb8ef8"
    )
}
"""(data set, kind) -> POPE's question file; of the adversarial COCO one the repaired copy."""

MISSPELT = "coco adversarial (57 texts end in 'imange')"
PUBLISHED = {sha[:16]: " ".join(key) for key, sha in _SHA256.items()} | {
    _SHA256["coco", "adversarial"][:16]: MISSPELT,
    "44bfb0b27f0d438e": "coco adversarial (repaired)",
    "f31727768b228d04": "coco popular (AGLA's copy, without the last newline)",
}
"""First 16 digits of SHA-256, line ends as LF -> which published file it is."""

REPOPE = ("f464fcaf60b24ce2", "57832b055bae5fd6", "8c346dbb060bf422")
"""The same of RePOPE's files (arXiv:2504.15707), whose labels are others."""


@dataclass(frozen=True)
class QuestionFile:
    """A question file; `data_set` is "" where neither content nor name tells, `row` what its questions count in.

    `published`: which published file it is, byte for byte but line ends; None: another one.
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
            "sha256": _digest(self.path),
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
                f"{self.path.name} is none of the published files for {self.data_set} (SHA-256 {_digest(self.path)}): "
                "its numbers do not compare with published ones."
            )
        if self.published == MISSPELT and not paper:
            return (
                f"{self.path.name} is AGLA's and VCD's copy, where 57 questions end in 'imange'; without --questions "
                "the repaired one is fetched."
            )
        if paper and (self.data_set, self.row) == ("coco", "pope_adversarial") and self.published != MISSPELT:
            return f"{self.path.name} is not AGLA's copy, where 57 questions end in 'imange'."
        return ""


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
    paths = {kind: fetch(published, f"pope/{data_set}") for kind, published in wanted.items()}
    return [QuestionFile(path, data_set, f"pope_{kind}", identify(path)) for kind, path in paths.items()]


def files_of(task: str, settings: Settings) -> list[QuestionFile]:
    """Return the files of `--questions` that a task asks: random, popular, adversarial, others.

    Of a folder, files of data sets that the run does not ask are left out; one that is named itself and that no task
    asks is a `DataError`, as is RePOPE's.
    """
    named, found = _given(settings)
    given = [*named, *found]
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
    asks = isinstance(row, dict) and str(row.get("text", "")).rstrip().endswith("?")
    return isinstance(row, dict) and "image" in row and "label" not in row and not asks


def _given(settings: Settings) -> tuple[list[Path], list[Path]]:
    """Return the files of `--questions`: those named, and those found in folders."""
    named: dict[Path, None] = {}
    found: dict[Path, None] = {}
    for path in map(Path, settings.questions):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*pope*.json*") if _kind(file) and not _repope(file))
            if not inside:
                raise DataError(
                    f"{path} holds no question file: in a folder those named like coco_pope_random.json are taken. "
                    "Name the files one by one otherwise."
                )
            found |= dict.fromkeys(inside)
        elif not list_of_pictures(path):
            named[path] = None
    return list(named), [path for path in found if path not in named]


def described(path: Path, files: int) -> QuestionFile:
    """Return what is known of a question file, one of `files`; raises `DataError` where it is RePOPE's."""
    if _repope(path):
        raise DataError(
            f"{path} is RePOPE's: its labels are others than POPE's, and questions are left out. Ask POPE's questions, "
            "and score the same answers by RePOPE's labels with the task repope (--repope FOLDER)."
        )
    published = identify(path)
    data_set = published.split()[0] if published else next((n for n in DATA_SETS if n in _words(path)), "")
    kind = published.split()[1] if published else _kind(path)
    stem = re.sub(r"[^a-z0-9]+", "_", path.name.partition(".")[0].lower()).strip("_")
    own = "pope" if files == 1 else f"pope_{stem}"
    return QuestionFile(path, data_set, f"pope_{kind}" if kind else own, published)


def _repope(path: Path) -> bool:
    return _digest(path) in REPOPE


def _kind(path: Path) -> str:
    return next((kind for kind in KINDS if kind in _words(path)), "")


def _words(path: Path) -> list[str]:
    return re.findall("[a-z]+", path.name.lower())


def _asked_by(file: QuestionFile, settings: Settings, named: bool) -> str:
    own, popes = f"pope_{file.data_set}", ("pope", *(f"pope_{name}" for name in DATA_SETS))
    tasks = [task for task in settings.tasks if task in popes]
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
