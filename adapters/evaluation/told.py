"""What a comparison found, as a table in markdown, and where the adapter does not win."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

LESS_IS_BETTER = ("mae", "brier")


def verdicts(rows: Sequence[Row], ours: str) -> list[str]:
    """Return a line for each difference: won, lost, or not decided by these pictures."""
    found = []
    for row in rows:
        if not row["method"].startswith(f"{ours}-") or row["value"] is None:
            continue
        other = row["method"].removeprefix(f"{ours}-")
        sign = -1 if row["metric"] in LESS_IS_BETTER else 1
        worst, best = sorted((sign * row["low"], sign * row["high"]))
        said = (
            f"{ours} beats {other}"
            if worst > 0
            else f"{ours} does not win here: {other} is better"
            if best < 0
            else f"{ours} does not win here: no difference from {other} is shown"
        )
        found.append(
            f"{row['metric']}: {said} ({_signed(row['value'])} [{_signed(row['low'])}, {_signed(row['high'])}])"
        )
    return found


def markdown(rows: Sequence[Row], ours: str, lead: str) -> str:
    """Return a table of all methods with 95 % intervals, and the verdicts."""
    methods = [name for name in dict.fromkeys(row["method"] for row in rows) if not name.startswith(f"{ours}-")]
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    cells = {(row["method"], row["metric"]): row for row in rows}
    lines = [lead, "", f"| | {' | '.join(methods)} |", f"|---|{'---|' * len(methods)}"]
    for metric in metrics:
        each = [cells.get((method, metric)) for method in methods]
        lines.append(f"| {metric} | {' | '.join(_cell(one) for one in each)} |")
    return "\n".join([*lines, "", *(f"- {line}" for line in verdicts(rows, ours)), ""])


def _cell(row: Row | None) -> str:
    if row is None or row["value"] is None:
        return "–"
    if row["value"] >= 1000:
        return f"{row['value']:,.0f}"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
