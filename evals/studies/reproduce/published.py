"""What is published of AGLA on POPE, each figure with its source; what has no source at hand is not here.

`data/published_agla.json` holds the tables as printed. Needs nothing but the standard library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[2] / "data" / "published_agla.json"
MEAN = "mean"
"""Data set of the figures that are means over COCO, A-OKVQA and GQA."""


@dataclass(frozen=True)
class Published:
    """A published figure.

    Args:
        value: a share, 0 to 1.
        source: where it is from.
        note: what is wrong with it, as printed; "" for nothing.
    """

    value: float
    source: str
    note: str = ""


@cache
def published() -> Mapping[str, Any]:
    """Return the file's content."""
    content: Mapping[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return content


def look_up(model: str, data: str, kind: str, method: str, metric: str) -> Published | None:
    """Return a figure, or None where none is published.

    Args:
        model: "llava-1.5-7b" or "instructblip-vicuna-7b".
        data: "coco", "aokvqa", "gqa", or "mean" over the three.
        kind: "random", "popular" or "adversarial".
        method: "regular", "agla", "vcd", "dola" or "opera".
        metric: "accuracy", "precision", "recall" or "f1".
    """
    row = _rows().get((model, data, kind, method))
    if row is None or metric not in row:
        return None
    return Published(round(row[metric] / 100, 6), published()["sources"][row["source"]], row.get("note", ""))


@cache
def _rows() -> dict[tuple[str, str, str, str], dict[str, Any]]:
    return {(row["model"], row["data"], row["kind"], row["method"]): row for row in published()["rows"]}
