"""POPE's questions: read, written, and built anew.

A file holds JSON lines in spite of its suffix .json: question_id, image, text, label. The builder is that of
RUCAIBox/POPE at 3df3ba1 (arXiv:2305.10355, section 4), with its own random stream. Questions of your own to choose
settings on are marked, so that they can't be taken for a test, nor a test for them:

    write_questions("mine_random_val.json", build(rows, "random", pictures=200), split="val")
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.pope import Answer
from lvlm_guard.evals.spec.jsonl import read

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
    """Read a question file (JSON lines, or one JSON list, .gz too; or a table).

    Raises `DataError`, which names the line: it is no JSON, lacks a field, has a label other than yes and no, or
    repeats an id; or a question has both labels.
    """
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

    Args:
        rows: `image` (name) and `objects` (list of names, in order) of each picture.
        kind: of absent objects: "random", "popular" (most frequent among the pictures drawn), or "adversarial" (most
            often together with the object just asked about). Ties go to the one seen first; where none is left, random.
        pictures: how many are drawn, with `seed`, from those with at least `per_picture` objects.
        parity: "official" writes "imange" in questions with "an", as the published builder does.

    Raises `DataError` where too few pictures have enough objects, or a picture leaves no absent object to ask about.
    """
    if kind not in KINDS:
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
                raise DataError(
                    f"Every object of the sample is in {image} or was asked about: no absent one is left. Give "
                    "pictures with more kinds of objects."
                )
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
