"""MME: two yes/no questions a picture, one of each answer; points for each answer and for each pair.

Source: Fu et al., "MME: A Comprehensive Evaluation Benchmark for Multimodal Large Language Models", 2023,
arXiv:2306.13394. `parity="official"` reads and pairs as the authors' evaluation does, `parity="stock"` reads as
lmms-eval 0.7 does. The default reads an answer as `pope.read` does and pairs by the picture's name.

Differs from the authors': a ratio 0/0 is 0.0 (theirs stops with an error).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import pope
from lvlm_guard.evals.metrics.metric import Array, Batch, Items, Score, share
from lvlm_guard.evals.metrics.pope import Answer, ratio
from lvlm_guard.evals.metrics.yes_no import WIDTH, YesNo

Parity = Literal["official", "stock"]

HALLUCINATION = ("existence", "count", "position", "color")
"""The tasks of the hallucination subset: objects, then attributes; 200 points each."""

FIELDS = ("task", "picture", "label", "answer")


class TaskScores(TypedDict):
    """Scores of one task; the positive class is yes, shares are in 0 to 1.

    `accuracy` is right answers / questions, `accuracy_plus` pictures with both answers right / pictures, and
    `score` 100 * (accuracy + accuracy_plus), 0 to 200. `other` counts answers that could not be read; they are
    wrong. By default one under a label yes is a miss (in `fn`); with a parity it is left out of precision and recall.
    """

    accuracy: float
    accuracy_plus: float
    score: float
    precision: float
    recall: float
    tp: int
    fp: int
    tn: int
    fn: int
    other: int
    questions: int
    pictures: int


class Scores(TypedDict):
    """Scores of several tasks.

    `tasks` holds each task's, `score` is their sum. `hallucination` is the sum over the hallucination subset, 0 to
    800; None where one of its tasks is missing.
    """

    tasks: dict[str, TaskScores]
    score: float
    hallucination: float | None


def read(answer: str, parity: Parity | None = None) -> Answer | None:
    """Read an answer as "yes" or "no"; None where it can't be read.

    Args:
        answer: the model's words.
        parity: None: the first word, else the first whole word yes, no or not of the first sentence.
            "official": the whole answer, else whether its first four characters hold yes, else no; two leading
            blanks hide a yes, three a no. "stock": as "official" after blanks at the ends and all periods are
            dropped, and a lone y or n counts.

    Raises:
        DataError: the parity is unknown.
    """
    _check_parity(parity)
    if parity is None:
        return pope.read(answer)
    text = answer.lower()
    if parity == "stock":
        text = text.strip().replace(".", "")
        if text in ("y", "n"):
            return "yes" if text == "y" else "no"
    start = text[:4]  # the words themselves are found there too
    return "yes" if "yes" in start else "no" if "no" in start else None


def score(rows: Iterable[Mapping[str, Any]], parity: Parity | None = None) -> Scores:
    """Score answers.

    Args:
        rows: each with `task`, `picture`, `label` ("yes" or "no", in any case) and `answer` (text; None counts as
            empty), two a picture: one yes, one no. With a parity the two are those that follow each other.
        parity: see `read`.

    Raises:
        DataError: a field is missing, a label is neither yes nor no, a picture has not one question of each label
            (with a parity: a task has an odd number of questions), or the parity is unknown.
    """
    _check_parity(parity)
    checked = [_checked(row, number) for number, row in enumerate(rows)]
    of_task: dict[str, list[tuple[str, Answer, str]]] = {}
    for task, picture, label, answer in checked:
        of_task.setdefault(task, []).append((picture, label, answer))
    tasks = {task: _task_scores(task, asked, parity) for task, asked in of_task.items()}
    subset = [tasks[task]["score"] for task in HALLUCINATION if task in tasks]
    return Scores(
        tasks=tasks,
        score=sum(found["score"] for found in tasks.values()),
        hallucination=sum(subset) if len(subset) == len(HALLUCINATION) else None,
    )


def _task_scores(task: str, asked: Sequence[tuple[str, Answer, str]], parity: Parity | None) -> TaskScores:
    said = [read(answer, parity) for *_, answer in asked]
    labels = [label for _, label, _ in asked]
    right = [s == label for s, label in zip(said, labels, strict=True)]
    if parity is None:
        both = pairs(task, [picture for picture, *_ in asked], labels)
    else:
        if len(asked) % 2:
            raise DataError(f"{task} has {len(asked)} questions: MME asks two a picture, one after the other.")
        both = [(i, i + 1) for i in range(0, len(asked), 2)]
    counts = {pair: sum(p == pair for p in zip(labels, said, strict=True)) for pair in _OUTCOMES.values()}
    tp, fp, tn, fn = (counts[_OUTCOMES[name]] for name in ("tp", "fp", "tn", "fn"))
    if parity is None:
        fn += sum(s is None and label == "yes" for s, label in zip(said, labels, strict=True))
    accuracy, plus = ratio(sum(right), len(asked)), ratio(sum(right[a] and right[b] for a, b in both), len(both))
    return TaskScores(
        accuracy=accuracy,
        accuracy_plus=plus,
        score=100 * (accuracy + plus),
        precision=ratio(tp, tp + fp),
        recall=ratio(tp, tp + fn),
        tp=tp,
        fp=fp,
        tn=tn,
        fn=fn,
        other=said.count(None),
        questions=len(asked),
        pictures=len(both),
    )


_OUTCOMES = {"tp": ("yes", "yes"), "fp": ("no", "yes"), "tn": ("no", "no"), "fn": ("yes", "no")}


def pairs(task: str, pictures: Sequence[str], labels: Sequence[Answer]) -> list[tuple[int, int]]:
    """Return the places of the two questions about each picture.

    Raises:
        DataError: a picture has not one question with the answer yes and one with no.
    """
    places: dict[str, list[int]] = {}
    for place, picture in enumerate(pictures):
        places.setdefault(picture, []).append(place)
    for picture, found in places.items():
        if sorted(labels[place] for place in found) != ["no", "yes"]:
            told = ", ".join(labels[place] for place in found)
            raise DataError(
                f"Picture {picture!r} of {task} has questions with the answers {told}: MME asks two a picture, one "
                "'yes' and one 'no', and scores them as a pair. Keep pairs whole when taking a part of the questions."
            )
    return [(found[0], found[1]) for found in places.values()]


class Mme(YesNo):
    """Pairs of questions about one picture, points for each answer and each pair; those of several tasks are summed."""

    def __init__(self, task: Mapping[str, Any], items: Items) -> None:
        super().__init__(task, items)
        places: dict[str, list[int]] = {}
        for place, rows in enumerate(items.rows):
            for row in rows:
                places.setdefault(row, []).append(place)
        for row, of in places.items():
            pairs(row, [items.pictures[i] for i in of], ["yes" if self.yes[i] else "no" for i in of])

    def count(self, batch: Batch) -> Array:
        """Return the counts of `YesNo`, and whether the authors' evaluation takes an answer for right, [B, k]."""
        labels = self.yes[batch.places].tolist()
        theirs = [
            read(text, "official") == ("yes" if yes else "no") for text, yes in zip(batch.texts, labels, strict=True)
        ]
        return np.column_stack([super().count(batch), np.array(theirs, dtype=float)])

    def finish(self, sums: Array) -> Array:
        """Add whether a picture's pair is whole, both answers are right, and both are as the authors read."""
        pair = sums[..., 4] == 2
        right = sums[..., 0] + sums[..., 2]
        both = np.stack([pair, pair & (right == 2), pair & (sums[..., WIDTH] == 2)], axis=-1)
        return np.concatenate([sums, both], axis=-1)

    def scores(self) -> Mapping[str, Score]:
        """Return points (0 to 200 a task), accuracies, and shares."""
        of = super().scores()

        def plus(c: Array) -> Array:
            return share(c[..., WIDTH + 2], c[..., WIDTH + 1])

        def official(c: Array) -> Array:
            return 100 * (share(c[..., WIDTH], c[..., 4]) + share(c[..., WIDTH + 3], c[..., WIDTH + 1]))

        shares = {
            name: replace(of[name], compared=False) for name in ("precision", "recall", "yes_ratio", "unreadable")
        }
        return {
            "score": Score(lambda c: 100 * (of["accuracy"].of(c) + plus(c)), over="sum"),
            "accuracy": of["accuracy"],
            "accuracy_plus": Score(plus),
            **shares,
            "score_official": Score(official, over="sum", compared=False),
        }


def hallucination(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows of the hallucination subset."""
    return [row for row in rows if row.get("task") in HALLUCINATION]


def read_answers(path: str | Path) -> list[dict[str, Any]]:
    """Read answer files as the authors' evaluation takes them: `picture, question, gold, answer` between tabs.

    Args:
        path: a file, whose name without suffix is its task (`existence.txt`), or a folder of such .txt files.

    Returns:
        Rows for `score`, with `question` too.

    Raises:
        DataError: a file can't be read, or a line has not four parts.
    """
    path = Path(path)
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} holds no .txt file: MME has one for each task, such as existence.txt.")
    return [row for file in files for row in _read_file(file)]


def _read_file(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read: {error}.") from error
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        parts = line.split("\t", 3)
        if len(parts) != 4:
            raise DataError(
                f"Line {number} of {path} has {len(parts)} parts between tabs: MME's have picture, question, gold "
                "answer and the model's answer."
            )
        rows.append(
            {"task": path.stem, "picture": parts[0], "question": parts[1], "label": parts[2], "answer": parts[3]}
        )
    if not rows:
        raise DataError(f"{path} holds no row.")
    return rows


def _checked(row: Mapping[str, Any], number: int) -> tuple[str, str, Answer, str]:
    for field in FIELDS:
        if field not in row:
            raise DataError(
                f"Row {number} has no {field!r}; it has {', '.join(map(repr, row)) or 'nothing'}. MME rows need "
                f"{', '.join(FIELDS)}."
            )
    label, answer = str(row["label"]).strip().lower(), row["answer"]
    if answer is not None and not isinstance(answer, str):
        raise DataError(f"Row {number} has an answer that is no text: {answer!r}.")
    if label not in ("yes", "no"):
        raise DataError(f"Row {number} has the label {row['label']!r}: MME knows 'Yes' and 'No' only.")
    return str(row["task"]), str(row["picture"]), "yes" if label == "yes" else "no", answer or ""


def _check_parity(parity: str | None) -> None:
    if parity not in (None, "official", "stock"):
        raise DataError(f"parity is {parity!r}: give None, 'official' (the authors') or 'stock' (lmms-eval's).")
