"""POPE's questions: read, written, and built anew.

A file holds JSON lines in spite of its suffix .json: question_id, image, text, label. The builder is that of
RUCAIBox/POPE at 3df3ba1 (arXiv:2305.10355, section 4), with its own random stream. Questions of your own to choose
settings on are marked, so that they can't be taken for a test, nor a test for them:

    write_questions("mine_random_val.json", build(rows, "random", pictures=200), split="val")
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from lvlm_guard.evals.decoders.decoder import PAPER
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.pope import Answer
from lvlm_guard.evals.spec.jsonl import content, numbered, read
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.benchmark import fetch, published

Kind = Literal["random", "popular", "adversarial"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Question(NamedTuple):
    """One question: its id, the picture's file name, the text, the right answer; "val": to choose settings on."""

    question_id: int
    image: str
    text: str
    label: Answer
    split: str = ""


def read_questions(path: str | Path) -> list[Question]:
    """Read a question file (JSON lines, or one JSON list, .gz too; or a table). Raises `DataError`, which names the
    line: it is no JSON, lacks a field, has a label other than yes and no, or repeats an id; or a question has both
    labels."""
    if not Path(path).is_file():
        raise DataError(f"There is no question file {path}. Published files: github.com/RUCAIBox/POPE, folder output.")
    questions: list[Question] = []
    labels: dict[tuple[str, str], str] = {}
    for number, row in read(path, ("question_id", "image", "text", "label"), ("question_id",), "POPE question"):
        at, image, text, label = f"Line {number} of {path}", str(row["image"]), str(row["text"]), row["label"]
        if label not in ("yes", "no"):
            raise DataError(f"{at} has the label {label!r}: POPE knows 'yes' and 'no' only.")
        if labels.setdefault((image, text), label) != label:
            raise DataError(f"{path} asks {text!r} of {image} with both labels; one of them is wrong.")
        try:
            questions.append(Question(int(row["question_id"]), image, text, label, str(row.get("split") or "")))
        except (TypeError, ValueError):
            raise DataError(f"{at} has the question_id {row['question_id']!r}: give a whole number.") from None
    return questions


def write_questions(path: str | Path, questions: Iterable[Question], split: Literal["", "val"] = "") -> None:
    """Write questions as JSON lines; "val" marks them as to choose settings on, so that `--split test` refuses them."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for question in questions:
            row = question._asdict() | {"split": split or question.split}
            file.write(json.dumps({k: v for k, v in row.items() if k != "split" or v}, ensure_ascii=False) + "\n")


def build(
    rows: Iterable[Mapping[str, Any]],
    kind: Kind,
    *,
    pictures: int = 500,
    per_picture: int = 3,
    seed: int = 0,
    parity: Literal["official"] | None = None,
) -> list[Question]:
    """Build questions: for each picture `per_picture` about objects in it, as many about absent ones; they take turns.

    `rows` have `image` and `objects` (names, in order); `pictures` are drawn, with `seed`, from those with objects
    enough. Absent objects are "random", "popular" (most frequent among the pictures drawn), or "adversarial" (most
    often together with the object just asked about); ties go to the one seen first; where none is left, random.
    `parity="official"` writes "imange" in questions with "an". Raises `DataError` of too few pictures, or one that
    leaves no absent object.
    """
    if kind not in KINDS:
        raise DataError(f"POPE has no questions of the kind {kind!r}: give 'random', 'popular' or 'adversarial'.")
    given = [(str(row["image"]), list(dict.fromkeys(row["objects"]))) for row in rows]
    fit = [(image, objects) for image, objects in given if len(objects) >= per_picture]
    if len(fit) < pictures:
        told = f"only {len(fit)} of {len(given)} have {per_picture} objects or more"
        raise DataError(f"{pictures} pictures were asked for, but {told}: give more pictures, or ask for fewer.")
    rng = random.Random(seed)
    drawn = rng.sample(fit, pictures)
    popular = [name for name, _ in Counter(name for _, objects in drawn for name in objects).most_common()]
    together: dict[str, Counter[str]] = {name: Counter() for name in popular}
    for _, objects in drawn:
        for name in objects:
            together[name].update(other for other in objects if other != name)
    asked: list[tuple[str, str, Answer]] = []
    for image, objects in drawn:
        met: set[str] = set()
        for present in objects[:per_picture]:
            free = [name for name in popular if name not in {present, *met, *objects}]
            if not free:
                told = f"Every object of the sample is in {image} or was asked about: no absent one is left"
                raise DataError(f"{told}. Give pictures with more kinds of objects.")
            # most_common is stable, as the published builder's sort: equal counts keep the order seen
            companions = [name for name, _ in together[present].most_common() if name in free]
            likely = {"random": [], "popular": free, "adversarial": companions}[kind]
            absent = likely[0] if likely else rng.choice(free)
            met |= {present, absent}
            asked += [(image, present, "yes"), (image, absent, "no")]
    return [Question(n, image, question_text(name, parity), said) for n, (image, name, said) in enumerate(asked, 1)]


def question_text(name: str, parity: Literal["official"] | None = None) -> str:
    """Return the question about an object; "official" misspells it where the article is "an"."""
    if name[:1] not in ("a", "e", "i", "o", "u"):
        return f"Is there a {name} in the image?"
    # the published builder turns every "a" of its template into "an", also the one in "image"
    return f"Is there an {name} in the {'imange' if parity == 'official' else 'image'}?"


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
        if self.published is None and self.data_set and not any(q.split == "val" for q in self.questions):
            known = f"the published files for {self.data_set} (SHA-256 {_digest(self.path)})"
            return [f"{name} is none of {known}: its numbers do not compare with published ones."]
        copy = "copy, where 57 questions end in 'imange'"
        if self.published == MISSPELT and not paper:
            return [f"{name} is AGLA's and VCD's {copy}; without --questions the repaired one is fetched."]
        return [f"{name} is not AGLA's {copy}."] if paper and adversarial and self.published != MISSPELT else []


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
    """Return the files of `--questions` that a task asks: random, popular, adversarial, others. Of a folder, files of
    data sets that the run does not ask are left out; one that is named itself and that no task asks is a `DataError`,
    as is RePOPE's."""
    paths = list(map(Path, settings.questions))
    named = [path for path in paths if not path.is_dir() and not list_of_pictures(path)]
    given = dict.fromkeys(named)
    for folder in (path for path in paths if path.is_dir()):
        inside = sorted(p for p in folder.rglob("*pope*.json*") if _word(p, KINDS) and _digest(p) not in REPOPE)
        if not inside:
            raise DataError(f"{folder} holds no question file, named like coco_pope_random.json: name them.")
        given |= dict.fromkeys(inside)
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
        raise DataError(f"{path} is RePOPE's: ask POPE's questions, and score the same answers with --repope FOLDER.")
    known = identify(path)
    data_set, kind = known.split()[:2] if known else (_word(path, DATA_SETS), _word(path, KINDS))
    stem = re.sub(r"[^a-z0-9]+", "_", path.name.partition(".")[0].lower()).strip("_")
    own = "pope" if files == 1 else f"pope_{stem}"
    return QuestionFile(path, data_set, f"pope_{kind}" if kind else own, known)


def _word(path: Path, words: Sequence[str]) -> str:
    return next((word for word in words if word in re.findall("[a-z]+", path.name.lower())), "")


def _asked_by(file: QuestionFile, settings: Settings, named: bool) -> str:
    own = f"pope_{file.data_set}"
    tasks = [task for task in settings.tasks if task in ("pope", *(f"pope_{name}" for name in DATA_SETS))]
    if own in tasks or "pope" in tasks:
        return own if own in tasks else "pope"
    if not file.data_set:
        if len(tasks) == 1:
            return tasks[0]
        told = f"which of {', '.join(tasks)} {file.path} is for: name it like coco_{file.path.name}"
        raise DataError(f"Neither content nor name tells {told}.")
    if named:
        told = f"{file.data_set}, and no task of this run asks it ({', '.join(settings.tasks)})"
        raise DataError(f"{file.path} is of {told}: add {own}, or leave the file out.")
    return ""
