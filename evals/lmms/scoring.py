"""How the embedded world's tasks are scored within lmms-eval: by this package's own POPE and CHAIR.

lmms-eval calls `*_results` for each document, in several threads, and an aggregator (`accuracy`, `chair_i`, ...; named
in the YAML files) once over all rows. A row's `score` is its own part of a mean, which lmms-eval's standard errors are
made of; other metrics have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
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


def chair_results(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, Row]:
    """Return the row of one caption under each metric."""
    picture = document["image_source"]
    row = {"image_id": picture, "image_source": picture, "caption": results[0], "objects": list(document["gt_object"])}
    own = {name: row | {"score": _captions(name, [row])} for name in ("chair_s", "length")}
    return own | {"chair_i": row, "object_recall": row}


def chair_target(document: Mapping[str, Any]) -> str:
    """Return what is in view."""
    return ", ".join(document["gt_object"])


def _answers(metric: str, rows: Sequence[Row]) -> float:
    found: Mapping[str, Any] = pope.score(rows)
    return pope.ratio(found[metric], len(rows)) if metric == "unreadable" else float(found[metric])


def _captions(metric: str, rows: Sequence[Row]) -> float:
    return float(chair.score(rows, {row["image_id"]: row["objects"] for row in rows}, vocabulary=NOUNS)[metric])


_OF_ANSWERS = ("accuracy", "precision", "recall", "f1", "yes_ratio", "unreadable")
accuracy, precision, recall, f1, yes_ratio, unreadable = (partial(_answers, metric) for metric in _OF_ANSWERS)
_OF_CAPTIONS = ("chair_s", "chair_i", "object_recall", "length")
chair_s, chair_i, object_recall, length = (partial(_captions, metric) for metric in _OF_CAPTIONS)
