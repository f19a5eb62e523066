"""What the table of a task shows, on terminals and pages alike: decoders, result rows, metrics, by columns alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

Shows = Literal["value", "difference", "label", "flips", "verdict"]
Task = Mapping[str, Any]

MOST = 4  # metrics of a task whose metrics are not ours
HEADS = ("accuracy", "score", "chair_i")
JUDGED = ("method", "adapter")  # roles whose gain is what a run is about


@dataclass(frozen=True)
class Column:
    title: str
    row: str  # the result row ("pope_all")
    metric: str
    shows: Shows = "value"  # alone, with its difference, less the labels' share of yes, or how many answers turned
    rank: int = 0  # those of the highest rank leave first where there is no room, those of rank 0 never


class Cell(NamedTuple):
    """A figure as it is written, its own interval, and the difference that stands beside it."""

    text: str
    interval: str = ""
    change: Row | None = None


class Results:
    """The contents of `results.json`, looked up by columns. `baselines`: decoder -> whom its differences are shown to,
    where that is not the reference."""

    def __init__(self, data: Mapping[str, Any], baselines: Mapping[str, str] | None = None) -> None:
        self.data, self.baselines = data, baselines or {}
        self.rows: list[Row] = [*data["rows"], *data.get("costs", ())]
        self.decoders: list[Mapping[str, Any]] = list(data["decoders"])
        self.tasks: list[Task] = list(data["tasks"])
        self.reference: str = data["reference"]
        self._rows_of = _owned(data["rows"], self.tasks)
        self._at = {(r["task"], r["decoder"], r["baseline"], r["metric"]): r for r in self.rows}

    def value(self, row: str, decoder: str, metric: str) -> Row | None:
        return self._at.get((row, decoder, None, metric))

    def difference(self, row: str, decoder: str, metric: str, baseline: str = "") -> Row | None:
        """Return the row of a decoder's difference to a baseline, by default the reference."""
        return self._at.get((row, decoder, baseline or self.baselines.get(decoder, self.reference), metric))

    def lines(self, task: Task) -> list[Mapping[str, Any]]:
        """Return the decoders that have results in a task, in order."""
        known = {r["decoder"] for r in self._of(*self.row_tasks(task))}
        return [decoder for decoder in self.decoders if decoder["name"] in known]

    def row_tasks(self, task: Task) -> list[str]:
        """Return the result rows of a task, that of all its items last."""
        return self._rows_of.get(task["name"], [])

    def metrics(self, row: str) -> list[str]:
        """Return the metrics of a result row, those at a token limit left out."""
        own = (r["metric"] for r in self._of(row) if r.get("limit") is None)
        return [metric for metric in dict.fromkeys(own) if metric not in SHOWN["costs"]]

    def verdicts(self) -> list[Mapping[str, Any]]:
        """Return the verdicts on what a run is about, each on all items of a task."""
        whole = {rows[-1] for rows in self._rows_of.values()}
        return [v for v in self.data["verdicts"] if v["task"] in whole and v["role"] in JUDGED]

    def pairs(self, task: Task) -> list[tuple[str, str]]:
        """Return the decoders that are compared with another than the reference, and with which."""
        there = (r for r in self._of(*self.row_tasks(task)) if r["baseline"] not in (None, self.reference))
        return list(dict.fromkeys((r["decoder"], r["baseline"]) for r in there))

    def costs(self, task: Task) -> list[str]:
        known = {r["metric"] for r in self._of(task["name"])}
        return [metric for metric in SHOWN["costs"] if metric in known]

    def main(self, task: Task) -> list[tuple[str, str]]:
        """Return the result rows and metrics that a task is first judged by: of all items, then of the hardest."""
        rows = self.row_tasks(task)
        known = [column.metric for column in self._columns(task) if column.shows == "difference" and not column.rank]
        if not known or not rows:
            return []
        return [(rows[-1], metric) for metric in known] + [(row, known[0]) for row in self._parts(rows, known[0])[:1]]

    def columns(self, task: Task) -> Iterator[Column]:
        """Yield the columns of a task's table, its cost last."""
        rows = self.row_tasks(task)
        whole = rows[-1] if rows else task["name"]
        there = self.metrics(whole)
        yield from self._columns(task)
        if any(v["task"] == whole for v in self.data["verdicts"]):
            yield Column("verdict", whole, "verdict", "verdict", 7)
        head = next((metric for metric in HEADS if metric in there), "")
        for place, row in enumerate(self._parts(rows, head)):
            shows: Shows = "value" if place else "difference"
            yield Column(f"{row.replace('_', ' ')}\n{title(head)}", row, head, shows, 9 if place else 2)
        if "time_ratio" in self.costs(task):
            yield Column(f"time\n×{self.reference}", task["name"], "time_ratio")

    def cell(self, column: Column, decoder: str) -> Cell:
        """Return what stands in a column for a decoder."""
        row = self.value(column.row, decoder, column.metric)
        if column.shows == "verdict":
            found = (v["verdict"] for v in self.data["verdicts"] if (v["task"], v["decoder"]) == (column.row, decoder))
            return Cell(next(found, ""))
        if column.shows == "label":
            share = next((r["value"] for r in self._of(column.row) if r["metric"] == "label_yes"), None)
            return Cell("–" if row is None or share is None else number(row["value"] - share, signed=True))
        if column.shows == "flips":
            turned = [self.difference(column.row, decoder, metric) for metric in ("n2p", "p2n")]
            told = ["–" if one is None else f"{one['value']:.0f}" for one in turned]
            return Cell("/".join(told) if any(turned) else "")
        if column.shows == "difference":
            return Cell(written(row), interval(row), self.difference(column.row, decoder, column.metric))
        return Cell(written(row))

    def _of(self, *rows: str) -> Iterator[Row]:
        return (row for row in self.rows if row["task"] in rows)

    def _columns(self, task: Task) -> list[Column]:
        whole = (self.row_tasks(task) or [task["name"]])[-1]
        there = self.metrics(whole)
        kind = "captions" if "chair_i" in there else "questions" if {"accuracy", "yes_ratio"} <= set(there) else ""
        known = {metric: how for metric, how in SHOWN.get(kind, {}).items() if metric in there}
        own = [metric for metric in there if metric not in SHOWN["readings"]]
        known = known or {metric: ("difference", rank) for rank, metric in enumerate(own[:MOST])}
        heads = {"label": "yes −\nlabels", "flips": "N2P/\nP2N"}
        return [
            Column(heads.get(shows, title(metric).replace(" ", "\n", 1)), whole, metric, shows, rank)
            for metric, (shows, rank) in known.items()
        ]

    def _parts(self, rows: Sequence[str], metric: str) -> list[str]:
        """Return the result rows of parts of a task, the one that is hardest for the reference first."""
        found = {row: (self.value(row, self.reference, metric) or {}).get("value") for row in rows[:-1]}
        return sorted(found, key=lambda row: math.inf if found[row] is None else float(found[row] or 0))


def _owned(rows: Sequence[Row], tasks: Sequence[Task]) -> dict[str, list[str]]:
    """Return task -> its result rows. Those of one task stand together, what several rows make up after them."""
    owners = {}
    for task in tasks:
        for row in task["rows"] or [task["name"]]:
            owners[f"{row}@{task['name']}"] = owners[row] = task["name"]  # the first where several tasks have it
    found: dict[str, list[str]] = {}
    owner = ""
    for row in dict.fromkeys(row["task"] for row in rows):
        owner = owners.get(row, owner)
        found.setdefault(owner, []).append(row)
    return found


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
