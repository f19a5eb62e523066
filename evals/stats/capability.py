"""Did the guard break the rest? A check beside every table: MMStar, through lmms-eval, must not fall.

Fewer hallucinations may be bought with less ability (arXiv:2609.01888). MMStar (1,500 questions, answers are letters)
needs no judge: `--tasks world_pope,...,mmstar`. A check is passed only if the whole interval of the paired difference
to the reference lies above -2 points: a wide one is no pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lvlm_guard.evals.stats.results import Row

MARGIN = 0.02
CHECKS = {"mmstar": "average", "lmms:mmstar": "average"}
"""Task -> the metric that must not fall."""


def capability(rows: Sequence[Row], reference: str) -> list[dict[str, Any]]:
    """Return the checks of rows: {"task", "decoder", "role", "value", "low", "high", "passed", "sentence"}."""
    found = []
    for row in rows:
        if row["baseline"] == reference and CHECKS.get(row["task"]) == row["metric"] and row["low"] is not None:
            passed = row["low"] > -MARGIN
            told = f"{100 * row['value']:+.1f} points [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
            keeps, end = (
                ("keeps", "")
                if passed
                else ("is not shown to keep", f", where the check wants all of it above {-100 * MARGIN:.0f}")
            )
            sentence = f"{row['decoder']} {keeps} what {reference} can: {told} on MMStar{end}."
            copied = {name: row[name] for name in ("task", "decoder", "role", "value", "low", "high")}
            found.append({**copied, "passed": passed, "sentence": sentence})
    return found
