"""The study in words: what a reader must know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lvlm_guard.evals.report.layout import Results, said
from lvlm_guard.evals.studies.verify.judges import BASELINES, CALIBRATED

Report = Mapping[str, Any]


def remarks(report: Report) -> list[str]:
    """Return what the figures say, verdicts on each matcher first, and what limits them."""
    results, row, counts = Results(report), report["task"]["name"], report["counts"]
    matchers = [one for one in report["verifiers"] if one["judged"]]
    told = [_verdict(results, row, one["name"]) for one in matchers]
    told += [sentence for one in matchers if (sentence := _marks(results, row, one, counts))]
    if results.value(row, CALIBRATED, "brier") is None:
        why = f"The CLIP {report['clip']['from']!r} is not calibrated, so its cosine stands for its probability"
        told.append(f"{why}. `lvlm-guard train dual-prompt --compare` writes a calibrated one to OUT/baselines/clip.")
    versions = {name: [one["version"] for one in of] for name, of in report["matchers"].items() if name != "blip-itm"}
    usual = report["clip"]["version"]
    if single := [name for name, of in versions.items() if len(of) == 1 and of != [usual]]:
        why = f"{', '.join(single)}: one training each, so their intervals hold the luck of the pictures alone"
        told.append(f"{why}; give --matcher NAME=FOLDER once for each seed.")
    if counts["cut"] or counts["empty"]:
        told.append(f"{counts['cut']} descriptions were cut at the token limit and {counts['empty']} are empty.")
    about = report["task"]["about"]
    return [*told, *about.get("warnings", ()), *([about["limits"]] if about.get("limits") else [])]


def _verdict(results: Results, row: str, name: str) -> str:
    ways: dict[str, list[str]] = {"beats": [], "is worse than": [], "is not told apart from": []}
    for other in BASELINES:
        found = results.difference(row, name, "auroc", other)
        if found is not None and found["value"] is not None:
            clear = found["low"] is not None and (found["low"] > 0 or found["high"] < 0)
            way = "is not told apart from" if not clear else "beats" if found["value"] > 0 else "is worse than"
            ways[way].append(f"{other} ({said({**found, 'p': None})})")
    parts = ", ".join(f"{way} {' and '.join(others)}" for way, others in ways.items() if others)
    falls_short = ways["is worse than"] or ways["is not told apart from"]
    end = ": not all that it must beat, so it should not be the default verifier here." if falls_short else "."
    return f"AUROC: {name} {parts}{end}"


def _marks(results: Results, row: str, one: Mapping[str, Any], counts: Mapping[str, int]) -> str:
    metrics = ("marked", "mark_precision", "mark_recall")
    marked, precision, recall = (results.value(row, one["name"], metric) for metric in metrics)
    if marked is None or recall is None:
        return ""
    if precision is None:
        return f"{one['name']} marks no mention as doubtful."
    trained = f" (mean of {one['trainings']} trainings)" if one["trainings"] > 1 else ""
    return (
        f"{one['name']} marks {marked['value'] * marked['n']:.0f} of {marked['n']} mentions as doubtful{trained}: "
        f"{precision['value']:.1%} of the marks are on hallucinated ones ("
        f"{counts['hallucinated'] / counts['mentions']:.1%} of all are), and {recall['value']:.1%} of those are marked."
    )


def lead(report: Report) -> str:
    """Return how much was asked, in a few sentences."""
    counts = report["counts"]
    return (
        f"{report['model']} described {counts['pictures']} pictures of {report['task']['name']} "
        f"({report['task']['split']}), greedy and unguarded. It named {counts['mentions']} objects on "
        f"{counts['pictures_with_mentions']} of them, each counted where a description names it first; "
        f"{counts['hallucinated']} are not there. All verifiers were asked about the same mentions. 95 % intervals: "
        f"{report['bootstrap']['draws']} bootstrap draws of {report['bootstrap']['unit']}."
    )
