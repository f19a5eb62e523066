"""How the embedded world's tasks are scored within lmms-eval: by this package's own POPE and CHAIR.

lmms-eval calls `*_results` for each document, in several threads, and the rest once over all rows. A row's `score` is
its own part of a mean, which lmms-eval's standard errors are made of; other metrics have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL.Image import Image

from lvlm_guard.evals.metrics import chair, pope
from lvlm_guard.evals.tasks.world import NOUNS

Row = dict[str, Any]


def visual(document: Mapping[str, Any]) -> list[Image]:
    """Return a document's picture."""
    return [document["image"].convert("RGB")]


def pope_results(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, Row]:
    """Return the row of one answer under each metric; raises `DataError` for a label other than yes and no."""
    row = {"question_id": document["question_id"], "label": document["answer"], "answer": results[0]}
    row["image_source"] = document["image_source"]  # the cluster of lmms-eval's standard error
    label, answer = pope.checked(row)
    said = pope.read(answer)
    own = {"accuracy": said == label, "yes_ratio": said == "yes", "unreadable": said is None}
    whole: dict[str, Row] = dict.fromkeys(("precision", "recall", "f1"), row)
    return {name: row | {"score": float(value)} for name, value in own.items()} | whole


def accuracy(rows: Sequence[Row]) -> float:
    """Return the share of right answers."""
    return pope.score(rows)["accuracy"]


def precision(rows: Sequence[Row]) -> float:
    """Return the share of yes answers that are right."""
    return pope.score(rows)["precision"]


def recall(rows: Sequence[Row]) -> float:
    """Return the share of questions to be answered yes that are."""
    return pope.score(rows)["recall"]


def f1(rows: Sequence[Row]) -> float:
    """Return the harmonic mean of precision and recall."""
    return pope.score(rows)["f1"]


def yes_ratio(rows: Sequence[Row]) -> float:
    """Return the share of yes among the answers (lmms-eval's stock POPE tells that of the labels)."""
    return pope.score(rows)["yes_ratio"]


def unreadable(rows: Sequence[Row]) -> float:
    """Return the share of answers that are neither yes nor no."""
    return pope.ratio(pope.score(rows)["unreadable"], len(rows))


def chair_target(document: Mapping[str, Any]) -> str:
    """Return what is in view."""
    return ", ".join(document["gt_object"])


def chair_results(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, Row]:
    """Return the row of one caption under each metric."""
    picture = document["image_source"]
    row = {"image_id": picture, "image_source": picture, "caption": results[0]}
    row["objects"] = list(document["gt_object"])
    scores = _captions([row])
    own = {"chair_s": scores["chair_s"], "length": scores["length"]}
    return {name: row | {"score": value} for name, value in own.items()} | {"chair_i": row, "object_recall": row}


def chair_s(rows: Sequence[Row]) -> float:
    """Return the share of captions that name what is not in view."""
    return _captions(rows)["chair_s"]


def chair_i(rows: Sequence[Row]) -> float:
    """Return the share of the named objects that are not in view."""
    return _captions(rows)["chair_i"]


def object_recall(rows: Sequence[Row]) -> float:
    """Return the share of what is in view that is named."""
    return _captions(rows)["object_recall"]


def length(rows: Sequence[Row]) -> float:
    """Return the mean number of words of a caption."""
    return _captions(rows)["length"]


def _captions(rows: Sequence[Row]) -> chair.Scores:
    return chair.score(rows, {row["image_id"]: row["objects"] for row in rows}, vocabulary=NOUNS)
