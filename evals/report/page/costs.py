"""What an answer costs, decoder by decoder."""

from __future__ import annotations

from lvlm_guard.evals.report.figures import Row
from lvlm_guard.evals.report.page.scores import Run, Task, small
from lvlm_guard.evals.stats.results import find
from lvlm_guard.report import Html, table, tag

COSTS = (
    ("seconds", "seconds", 3),
    ("time_ratio", "time ratio", 2),
    ("tokens", "tokens", 1),
    ("global_forwards", "forwards", 2),
    ("local_forwards", "local fwd", 2),
    ("local_tokens", "local tokens", 1),
    ("masks", "masks", 2),
    ("peak_memory_mib", "peak MiB", 0),
)


def cost_table(run: Run, task: Task) -> Html:
    """Return what an answer costs; time and memory are this run's own, the counts repeat exactly."""
    rows = [row for row in (*run["rows"], *run.get("times", {}).get("rows", ())) if row["task"] == task["name"]]
    shown = [cost for cost in COSTS if any(row["metric"] == cost[0] for row in rows)]
    body: list[list[object]] = []
    for decoder in (d["name"] for d in run["decoders"]):
        found = [find(rows, decoder, task["name"], metric) for metric, *_ in shown]
        if any(found):
            body.append([decoder, *(_cost(row, digits) for row, (_, _, digits) in zip(found, shown, strict=True))])
    if not body:
        return Html("")
    return table(
        ["decoder", *(title for _, title, _ in shown)],
        body,
        caption="What an answer costs",
        note="Means an answer; of a batch, its share. Time is the request's: picture processing, matching and "
        "generation; its ratio is to the reference's. Local: of second branches (fwd: forwards). Masks: second views "
        "that were made. Peak memory is the GPU's, or the process's where there is none.",
    )


def _cost(row: Row | None, digits: int) -> object:
    if row is None or row["value"] is None:
        return None
    value = tag("div", f"{row['value']:.{digits}f}", class_="value")
    if row["low"] is None:
        return value
    return tag("div", value, small(f"[{row['low']:.{digits}f}, {row['high']:.{digits}f}]"))
