"""How figures are written, and when a difference is called one. Plain text; needs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

CLEAR = 0.05  # a difference whose interval excludes zero and whose p-value is below this is called clear
LOWER_IS_BETTER = frozenset({"chair_s", "chair_i", "chair_s_official", "chair_i_official"})

NAMES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "yes_ratio": "yes ratio",
    "chair_i": "CHAIR_i",
    "chair_s": "CHAIR_s",
    "object_recall": "recall",
    "length": "words",
    "acc_plus": "acc+",
}


def number(value: float, *, signed: bool = False) -> str:
    """Write a share without its leading zero: .879, +.146, −.003."""
    # rounded first, so that nothing is written as minus zero
    text = f"{round(value, 3) + 0.0:+.3f}" if signed else f"{value:.3f}"
    return text.replace("0.", ".", 1).replace("-", "−") if abs(value) < 1 else text.replace("-", "−")


def ends(row: Row, *, signed: bool = False) -> str:
    """Write an interval: [.1, .2]; "" where there is none."""
    if row["low"] is None:
        return ""
    return f"[{number(row['low'], signed=signed)}, {number(row['high'], signed=signed)}]"


def p_text(p: float) -> str:
    """Write a p-value: p<.001, p=.03."""
    return "p<.001" if p < 0.001 else f"p={p:.3f}".replace("0.", ".", 1)


def said(row: Row) -> str:
    """Write a difference in a sentence: +.146 [+.124, +.168], p<.001."""
    return f"{number(row['value'], signed=True)} {ends(row, signed=True)}, {p_text(row['p_value'])}"


def verdict(row: Row) -> str:
    """Return "good", "bad" or "" for a difference: a clear one, by its interval and its p-value."""
    if row["p_value"] is None or row["p_value"] >= CLEAR or row["low"] is None or row["low"] <= 0 <= row["high"]:
        return ""
    return "good" if (row["value"] > 0) != (row["metric"] in LOWER_IS_BETTER) else "bad"


def named(base: str, matcher: str) -> str:
    """Return the name of a decoder whose matcher is one of several that are compared: "vote, dual-prompt"."""
    return f"{base}, {matcher}" if matcher else base


def methods_of(rows: Sequence[Row]) -> list[str]:
    """Return the names of the decoders, in order, without the differences."""
    return list(dict.fromkeys(row["method"] for row in rows if "p_value" not in row))
