"""What `lvlm-guard train distill` measures on the embedded world, and how it is shown."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from lvlm_guard.cli.console import out, say

TASKS = ("world_pope", "world_chair")
BY_SEED = (
    *((f"pope_{kind}", "accuracy") for kind in ("random", "popular", "adversarial", "all")),
    *(("chair", metric) for metric in ("chair_s", "chair_i", "object_recall")),
)


def measured(place: Path, lessons: Any, report: dict[str, Any], device: str) -> list[dict[str, Any]]:
    """Run plain, distilled and guarded on the embedded world's test split; returns the rows, and notes each seed's."""
    room = import_module("lvlm_guard.evals.infer.ask")
    settings = import_module("lvlm_guard.evals.spec.settings").Settings(
        tasks=TASKS,
        methods=(lessons.method,),
        knobs={lessons.method: lessons.knobs},
        controls=False,
        adapters=tuple(f"distilled={folder}" for folder in report["adapters"]),
        batch=room.MANY,
        device=device,
    )
    folder = room.ask(settings, place / "eval", echo=say, replaces=True)
    rows = import_module("lvlm_guard.evals.stats.score").score(folder)["rows"]
    say(f"Report: {import_module('lvlm_guard.evals.report.page').write_report(folder)}")
    report["by_seed"] = [
        {"seed": seed, "task": row["task"], "metric": row["metric"], "value": value}
        for row in rows
        if (row["decoder"], row["baseline"]) == ("distilled", None) and (row["task"], row["metric"]) in BY_SEED
        for seed, value in zip(report["seeds"], row.get("trainings", [row["value"]]), strict=True)
    ]
    return [row | {"method": "-".join(filter(None, (row["decoder"], row["baseline"])))} for row in rows]


def show(report: dict[str, Any]) -> None:
    lines = import_module("lvlm_guard.adapters.distill.run").side_by_side(report)
    shown = Table("", "plain", "distilled", report["lessons"]["method"], "distilled - plain, 95 %", box=None)
    for what, *three, difference in lines:
        ends = (
            ""
            if difference is None
            else f"{difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"
        )
        shown.add_row(what, *("" if row is None else f"{row['value']:.3f}" for row in three), escape(ends))
    out().print(shown)
