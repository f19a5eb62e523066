"""How numbers are written, and when a difference is called one. Plain text from result rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

Row = Mapping[str, Any]
Mark = Literal["good", "bad", ""]

SHOWN: Mapping[str, Any] = yaml.safe_load(Path(__file__).with_name("metrics.yaml").read_text(encoding="utf-8"))
"""How each metric is shown."""


def title(metric: str) -> str:
    """Return a metric's name for people."""
    return str(SHOWN["titles"].get(metric, metric.replace("_", " ")))


def digits(metric: str) -> int:
    """Return how many digits a metric has behind the point."""
    return 2 if metric in SHOWN["two_digits"] else 3


def number(value: float | None, *, signed: bool = False, digits: int = 3) -> str:
    """Write a share without its leading zero (.879, +.146, −.003); other numbers with two digits; "–" for None."""
    if value is None:
        return "–"
    # rounded first, so that nothing is written as minus zero
    text = f"{round(value, digits) + 0.0:{'+' if signed else ''}.{digits}f}".replace("-", "−")
    return text.replace("0.", ".", 1) if digits == 3 and abs(value) < 1 else text


def written(row: Row | None, end: str = "value") -> str:
    """Write a row's value (or its "low" or "high"), signed where the row is a difference."""
    if row is None:
        return "–"
    return number(row[end], signed=row.get("baseline") is not None, digits=digits(row["metric"]))


def interval(row: Row | None) -> str:
    """Write a row's 95 % interval: [.1, .2]; "" where there is none."""
    if row is None or row["low"] is None:
        return ""
    return f"[{written(row, 'low')}, {written(row, 'high')}]"


def p_text(p: float | None) -> str:
    """Write a p-value: p<.001, p=.03; "" where there is none."""
    if p is None:
        return ""
    return "p<.001" if p < 0.001 else f"p={p:.3f}".replace("0.", ".", 1)


def said(row: Row) -> str:
    """Write a difference in a sentence: +.146 [+.124, +.168], p<.001."""
    return ", ".join(part for part in (f"{written(row)} {interval(row)}".strip(), p_text(row.get("p"))) if part)


def judged(row: Row | None) -> Mark:
    """Return "good" or "bad" for a difference that the statistics call clear, by the metric's own direction."""
    if row is None or row["value"] is None or not row.get("bold") or not row.get("direction"):
        return ""
    return "good" if (row["value"] > 0) == (row["direction"] == "higher") else "bad"
