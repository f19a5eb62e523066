"""The report in words: what a reader must know, and a table in markdown. Plain text; needs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lvlm_guard.evals.report.figures import ends, number
from lvlm_guard.evals.stats.results import find
from lvlm_guard.evals.studies.verify.rows import BASELINES, CALIBRATED, MODEL

Report = Mapping[str, Any]
Row = dict[str, Any]

COLUMNS = {
    "auroc": "AUROC",
    "brier": "Brier",
    "calibration_error": "calibration error",
    "marked": "marked",
    "mark_precision": "precision of marks",
    "mark_recall": "recall of marks",
}
"""Metric -> its heading."""

LESS = "less"
ALL = {"auroc": COLUMNS["auroc"], LESS: f"less {CALIBRATED}'s"} | COLUMNS
SHOWN = {key: ALL[key] for key in ("auroc", LESS, "brier", "calibration_error")}
"""With the difference in AUROC from the first baseline: all of them, and those that fit on a terminal."""


def remarks(report: Report) -> list[str]:
    """Return what the figures say, verdicts on each matcher first, and what limits them."""
    rows, task = report["rows"], report["task"]["name"]
    told = [_verdict(rows, task, one) for one in report["verifiers"] if one["role"] == "matcher"]
    told += [line for one in report["verifiers"] if one["role"] == "matcher" for line in _marks(rows, task, one)]
    if find(rows, CALIBRATED, task, "brier") is None:
        told.append(
            f"The CLIP {report['clip']['from']!r} is not calibrated, so its cosine stands for its probability: with "
            "the same AUROC, and neither calibration nor marks. `lvlm-guard train dual-prompt --compare` writes a "
            "calibrated one to OUT/baselines/clip."
        )
    untuned = report["clip"]["version"].partition(" ")[2]
    single = [
        name
        for name, of in report["matchers"].items()
        if name != "blip-itm" and [one["version"].partition(" ")[2] != untuned for one in of] == [True]
    ]
    if single:
        told.append(
            f"{', '.join(single)}: one training each, so their intervals hold the luck of the pictures alone; give "
            "--matcher NAME=FOLDER once for each seed."
        )
    counts = report["counts"]
    if counts["cut"] or counts["empty"]:
        told.append(f"{counts['cut']} descriptions were cut at the token limit and {counts['empty']} are empty.")
    about = report["task"]["about"]
    return [*told, *about.get("warnings", ()), *([about["limits"]] if about.get("limits") else [])]


def _verdict(rows: Sequence[Row], task: str, one: Mapping[str, Any]) -> str:
    """Say which of the baselines a matcher beats in AUROC, by the intervals of the differences."""
    name = one["name"]
    found = {other: find(rows, f"{name}-{other}", task, "auroc") for other in BASELINES}
    known = {other: row for other, row in found.items() if row is not None and row["value"] is not None}
    beaten = [f"{other} ({_difference(row)})" for other, row in known.items() if row["low"] > 0]
    worse = [f"{other} ({_difference(row)})" for other, row in known.items() if row["high"] < 0]
    open_ = [f"{other} ({_difference(row)})" for other, row in known.items() if row["low"] <= 0 <= row["high"]]
    parts = [f"beats {_listed(beaten)}"] if beaten else []
    parts += [f"is worse than {_listed(worse)}"] if worse else []
    parts += [f"is not told apart from {_listed(open_)}"] if open_ else []
    end = (
        "."
        if not worse and not open_
        else ": not all that it must beat, so it should not be the default verifier here."
    )
    return f"AUROC: {name} {', '.join(parts)}{end}"


def _marks(rows: Sequence[Row], task: str, one: Mapping[str, Any]) -> list[str]:
    marked, precision, recall = (
        find(rows, one["name"], task, key) for key in ("marked", "mark_precision", "mark_recall")
    )
    base = find(rows, MODEL, task, "hallucinated")
    if marked is None or recall is None or precision is None or base is None:
        return []
    if precision["value"] is None:
        return [f"{one['name']} marks no mention as doubtful."]
    trained = f" (mean of {one['trainings']} trainings)" if one["trainings"] > 1 else ""
    return [
        f"{one['name']} marks {marked['value'] * marked['n']:.0f} of {marked['n']} mentions as doubtful{trained}: "
        f"{precision['value']:.1%} of the marks are on hallucinated ones ({base['value']:.1%} of all are), and "
        f"{recall['value']:.1%} of those are marked."
    ]


def _difference(row: Row) -> str:
    return f"{number(row['value'], signed=True)} {ends(row, signed=True)}"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(([", ".join(parts[:-1])] if parts[:-1] else []) + list(parts[-1:]))


def lead(report: Report) -> str:
    """Return how much was asked, in a sentence or two."""
    counts = report["counts"]
    return (
        f"{report['model']} described {counts['pictures']} pictures of {report['task']['name']} "
        f"({report['task']['split']}), greedy and unguarded. It named {counts['mentions']} objects on "
        f"{counts['pictures_with_mentions']} of them, each counted where a description names it first; "
        f"{counts['hallucinated']} are not there. All verifiers were asked about the same mentions. 95 % intervals: "
        f"{report['bootstrap']['draws']} bootstrap draws of {report['bootstrap']['unit']}."
    )


def markdown(report: Report) -> str:
    """Return the report as markdown: command, machine, a line for each verifier, and the remarks."""
    where = report["environment"]
    made = ", ".join(
        f"{key} {where[key]}"
        for key in ("machine", "threads", "device", "dtype", "commit", "torch", "transformers")
        if where.get(key)
    )
    lines = [f"`{report['call']}`", "", lead(report), "", f"| verifier | {' | '.join(ALL.values())} |"]
    lines.append("|---" * (len(ALL) + 1) + "|")
    for one in report["verifiers"]:
        lines.append(f"| {one['name']} ({one['about']}) | {' | '.join(cells(report, one['name'], ALL))} |")
    return "\n".join(
        [
            *lines,
            "",
            f"Seed of the draws {report['bootstrap']['seed']}; {made}.",
            "",
            *(f"- {r}" for r in report["remarks"]),
            "",
        ]
    )


def cells(report: Report, name: str, metrics: Iterable[str]) -> list[str]:
    """Return a verifier's figures as text."""
    rows, task = report["rows"], report["task"]["name"]
    return [
        _cell(find(rows, f"{name}-{CALIBRATED}", task, "auroc"), signed=True)
        if metric == LESS
        else _cell(find(rows, name, task, metric))
        for metric in metrics
    ]


def _cell(row: Row | None, *, signed: bool = False) -> str:
    """Write a figure with its interval; a dash where there is none."""
    if row is None or row["value"] is None:
        return "–"
    return f"{number(row['value'], signed=signed)} {ends(row, signed=signed)}"
