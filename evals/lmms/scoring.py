"""How the embedded world's tasks are scored within lmms-eval: by this package's own POPE and CHAIR.

lmms-eval calls `*_results` for each document, in several threads, and an aggregator (`accuracy`, `chair_i`, ...; named
in the YAML files) once over all rows. A row's `score` is its own part of a mean, which lmms-eval's standard errors are
made of; other metrics have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL.Image import Image

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import chair, pope, yes_no
from lvlm_guard.evals.tasks.world import NOUNS

Row = dict[str, Any]
OF_ANSWERS = {**yes_no.OF_YES, "unreadable": yes_no.COLUMNS.ratio("unreadable / n", "lower")}
OF_CAPTIONS = {name: chair.SCORES[name] for name in ("chair_s", "chair_i", "object_recall", "length")}
MEANS = ("accuracy", "yes_ratio", "unreadable", "chair_s", "length")


def visual(document: Mapping[str, Any]) -> list[Image]:
    return [document["image"].convert("RGB")]


def pope_results(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, Row]:
    """Return the row of one answer under each metric; raises `DataError` for a label other than yes and no."""
    label = document["answer"]
    if label not in ("yes", "no"):
        raise DataError(f"Question {document['question_id']!r} has the label {label!r}: POPE knows 'yes' and 'no'.")
    return _rows(document, OF_ANSWERS, yes_no.counts(pope.read(results[0]), label == "yes"))


def chair_results(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, Row]:
    """Return the row of one caption under each metric."""
    caption = {"image_id": 0, "caption": results[0]}
    (read,) = chair.compare([caption], {0: document["gt_object"]}, vocabulary=NOUNS)
    return _rows(document, OF_CAPTIONS, chair.counts(read))


def chair_target(document: Mapping[str, Any]) -> str:
    return ", ".join(document["gt_object"])


def _rows(document: Mapping[str, Any], metrics: Mapping[str, Any], counts: Sequence[float]) -> dict[str, Row]:
    # the cluster of lmms-eval's standard error
    row = {"image_source": document["image_source"], "counts": [float(count) for count in counts]}
    return {name: row | ({"score": _aggregated(metrics[name], [row])} if name in MEANS else {}) for name in metrics}


def _aggregated(score: Any, rows: Sequence[Row]) -> float:
    return float(score.of(np.sum([row["counts"] for row in rows], axis=0)))


accuracy, precision, recall, f1, yes_ratio, unreadable = (partial(_aggregated, score) for score in OF_ANSWERS.values())
chair_s, chair_i, object_recall, length = (partial(_aggregated, score) for score in OF_CAPTIONS.values())
