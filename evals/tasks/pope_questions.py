"""POPE question files: reading them, knowing them, checking their pictures, and building new ones.

A file holds JSON lines in spite of its suffix .json: question_id, image, text, label. The builder is
that of RUCAIBox/POPE at 3df3ba1 (arXiv:2305.10355, section 4), with its own random stream.

Questions of your own to choose settings on are marked, so that they can't be taken for a test, nor a test for them:

    questions = build(rows, "random", pictures=200)  # rows: {"image": name, "objects": [names]}
    write_questions("mine_random_val.json", questions, split="val")
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.pope import Answer

Kind = Literal["random", "popular", "adversarial"]

PUBLISHED = {
    "ac25245170b975a5": "coco random",
    "fa3a986eb3d586ce": "coco popular",
    "f31727768b228d04": "coco popular (AGLA's copy, without the last newline)",
    "185d7eb49958c882": "coco adversarial (57 texts end in 'imange')",
    "44bfb0b27f0d438e": "coco adversarial (repaired)",
    "900c244605e8d436": "aokvqa random",
    "792d586a875c1973": "aokvqa popular",
    "87f9acb460fcb690": "aokvqa adversarial",
    "1c1117ce33df2eae": "gqa random",
    "e48e138bd61dd3bc": "gqa popular",
    "64a3bdeb8d24c02d": "gqa adversarial",
}
"""First 16 digits of SHA-256, line ends as LF -> which published file it is."""


@dataclass(frozen=True)
class Question:
    """One question: its id, the picture's file name, the text, the right answer; "val": to choose settings on."""

    question_id: int
    image: str
    text: str
    label: Answer
    split: str = ""


def read_questions(path: str | Path) -> list[Question]:
    """Read a question file (JSON lines, or one JSON list; .gz too).

    Raises:
        DataError: the file is missing, empty or no such file; a line is no JSON, lacks a field, has a
            label other than yes and no, or repeats an id; a question has both labels. The message names the line.
    """
    lines = file_text(path).splitlines()
    rows: list[tuple[int, Any]] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                rows = _as_list(path, lines, number, error)
                break
    if len(rows) == 1 and isinstance(rows[0][1], list):
        rows = list(enumerate(rows[0][1], 1))
    if not rows:
        raise DataError(f"{path} holds no question.")
    questions = [_question(path, number, row) for number, row in rows]
    twice = [i for i, count in Counter(q.question_id for q in questions).items() if count > 1]
    if twice:
        raise DataError(f"{path} has question_id {twice[0]} more than once: answers could not be told apart.")
    labels: dict[tuple[str, str], str] = {}
    for q in questions:
        if labels.setdefault((q.image, q.text), q.label) != q.label:
            raise DataError(f"{path} asks {q.text!r} of {q.image} with both labels; one of them is wrong.")
    return questions


def file_text(path: str | Path) -> str:
    """Return a question file's text (.gz too), line ends as LF; raises `DataError` where it can't be read."""
    try:
        return _content(path).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text file ({error}): a question file holds JSON lines.") from None


def _content(path: str | Path) -> bytes:
    try:
        content = Path(path).read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError) as error:
        raise DataError(
            f"The question file {path} can't be read ({getattr(error, 'strerror', '') or error}). Published files: "
            "github.com/RUCAIBox/POPE, folder output."
        ) from error


def _as_list(path: str | Path, lines: list[str], number: int, error: Exception) -> list[tuple[int, Any]]:
    try:
        whole = json.loads("\n".join(lines))
    except json.JSONDecodeError:
        raise DataError(f"Line {number} of {path} is no JSON: {error}.") from None
    return list(enumerate(whole if isinstance(whole, list) else [whole], 1))


def _question(path: str | Path, number: int, row: Any) -> Question:
    at = f"Line {number} of {path}"
    if not isinstance(row, dict):
        raise DataError(f"{at} is no question: {row!r}.")
    for field in ("question_id", "image", "text", "label"):
        if field not in row:
            near = get_close_matches(field, map(str, row), n=1)
            raise DataError(
                f"{at} has no {field!r}; it has {', '.join(map(repr, row)) or 'nothing'}. "
                + (f"Is {near[0]!r} meant? " if near else "")
                + "A POPE question needs question_id, image, text and label."
            )
    label = row["label"]
    if label not in ("yes", "no"):
        raise DataError(f"{at} has the label {label!r}: POPE knows 'yes' and 'no' only.")
    try:
        return Question(
            int(row["question_id"]), str(row["image"]), str(row["text"]), label, str(row.get("split") or "")
        )
    except (TypeError, ValueError):
        raise DataError(f"{at} has the question_id {row['question_id']!r}: give a whole number.") from None


def identify(path: str | Path) -> str | None:
    """Return which published file this is, whatever its line ends; None where it is none of them."""
    content = _content(path).replace(b"\r\n", b"\n")
    return PUBLISHED.get(hashlib.sha256(content).hexdigest()[:16])


def check_pictures(questions: Iterable[Question], folder: str | Path) -> None:
    """Raise `DataError`, before any model is loaded, unless every picture is in the folder."""
    names = dict.fromkeys(question.image for question in questions)
    missing = [name for name in names if not (Path(folder) / name).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} pictures are not in {folder}; the first is {missing[0]}. COCO's are in "
            "images.cocodataset.org/zips/val2014.zip."
        )


def write_questions(path: str | Path, questions: Iterable[Question], split: Literal["", "val"] = "") -> None:
    """Write questions as JSON lines, in the published order of fields.

    Args:
        path: the file.
        questions: in order.
        split: "val" marks them as questions to choose settings on: `--split test` refuses them.
    """
    rows = (asdict(question) | {"split": split or question.split} for question in questions)
    plain = ({field: value for field, value in row.items() if field != "split" or value} for row in rows)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in plain)
    Path(path).write_text("".join(lines), encoding="utf-8", newline="\n")


def build(
    rows: Iterable[Mapping[str, Any]],
    kind: Kind,
    *,
    pictures: int = 500,
    per_picture: int = 3,
    seed: int = 0,
    parity: Literal["official"] | None = None,
) -> list[Question]:
    """Build questions: for each picture `per_picture` about objects in it, as many about absent ones.

    Args:
        rows: `image` (name) and `objects` (list of names, in order) of each picture.
        kind: how absent objects are chosen: "random", "popular" (most frequent among the pictures drawn),
            or "adversarial" (occurs most often together with the object just asked about). Ties go to
            the object seen first; where none is left, at random.
        pictures: how many are drawn from those with at least `per_picture` objects.
        seed: of the draw.
        parity: "official" writes "imange" in questions with "an", as the published builder does.

    Returns:
        2 * per_picture * pictures questions; yes and no take turns.

    Raises:
        DataError: too few pictures have enough objects, or a picture leaves no absent object to ask about.
    """
    if kind not in ("random", "popular", "adversarial"):
        raise DataError(f"POPE has no questions of the kind {kind!r}: give 'random', 'popular' or 'adversarial'.")
    given = [(str(row["image"]), list(dict.fromkeys(row["objects"]))) for row in rows]
    fit = [(image, objects) for image, objects in given if len(objects) >= per_picture]
    if len(fit) < pictures:
        raise DataError(
            f"{pictures} pictures were asked for, but only {len(fit)} of {len(given)} have {per_picture} objects or "
            "more: give more pictures, or ask for fewer."
        )
    rng = random.Random(seed)
    drawn = rng.sample(fit, pictures)
    frequency = Counter(name for _, objects in drawn for name in objects)
    together: dict[str, Counter[str]] = {name: Counter() for name in frequency}
    for _, objects in drawn:
        for name in objects:
            together[name].update(other for other in objects if other != name)
    popular = [name for name, _ in frequency.most_common()]
    questions: list[Question] = []
    for image, objects in drawn:
        asked: set[str] = set()
        for present in objects[:per_picture]:
            asked.add(present)
            free = [name for name in popular if name not in asked and name not in objects]
            if not free:
                raise DataError(
                    f"Every object of the sample is in {image} or was asked about: no absent one is left. Give "
                    "pictures with more kinds of objects."
                )
            absent = _absent(kind, free, together[present], rng)
            asked.add(absent)
            for name, label in ((present, "yes"), (absent, "no")):
                text = question_text(name, parity)
                questions.append(Question(len(questions) + 1, image, text, "yes" if label == "yes" else "no"))
    return questions


def _absent(kind: Kind, free: Sequence[str], together: Counter[str], rng: random.Random) -> str:
    if kind == "popular":
        return free[0]
    if kind == "adversarial":
        # most_common is stable, as the published builder's sort: equal counts keep the order seen
        likely = [name for name, _ in together.most_common() if name in free]
        if likely:
            return likely[0]
    return rng.choice(free)


def question_text(name: str, parity: Literal["official"] | None = None) -> str:
    """Return the question about an object; "official" misspells it where the article is "an"."""
    if name[:1] not in ("a", "e", "i", "o", "u"):
        return f"Is there a {name} in the image?"
    # the published builder turns every "a" of its template into "an", also the one in "image"
    return f"Is there an {name} in the {'imange' if parity == 'official' else 'image'}?"
