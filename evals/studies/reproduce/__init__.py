"""AGLA's paper again (arXiv:2406.12718): its grid, measured beside published.

    print(*sentences(dry_run()), sep="\\n")                   # what to get, how large it is, how long it takes
    found = reproduce("runs/agla", base=Settings(images="pictures", annotations="annotations"))
    found = reproduce("runs/world", model="embedded")        # the same grid without downloads

Each cell is a run of its own below `out`: it goes on where it stopped, and a finished one is not asked again. What
differs from the authors' release is told beside the figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

import lvlm_guard
from lvlm_guard.cli.console import finite
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.infer.ask import ask
from lvlm_guard.evals.infer.record import code_digest
from lvlm_guard.evals.report.layout import number, p_text
from lvlm_guard.evals.report.page import write_report
from lvlm_guard.evals.report.saved import Run, read_run
from lvlm_guard.evals.report.terminal import Column, fitted
from lvlm_guard.evals.spec.jsonl import write_lines
from lvlm_guard.evals.spec.settings import EMBEDDED, Settings
from lvlm_guard.evals.stats.bootstrap import Estimate, difference, estimate
from lvlm_guard.evals.stats.results import Measured, Row
from lvlm_guard.evals.stats.score import score
from lvlm_guard.evals.stats.tally import tallies_of
from lvlm_guard.evals.stats.validity import Allowed
from lvlm_guard.evals.studies.reproduce.grid import COMMAND, TABLE, Cell, dry_run, missing, plan, sentences
from lvlm_guard.evals.tasks.pope.questions import DATA_SETS

FILE = Path(__file__).parents[2] / "data" / "published_agla.json"
PUBLISHED: Mapping[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
"""The tables as printed, each figure with its source; what has none is not there."""
MEAN = "mean"  # data set of the figures that are means over COCO, A-OKVQA and GQA
DIFFERENCES = (("agla", "regular"), ("agla", "matched"))


def reproduce(
    out: str | Path,
    model: str | None = None,
    only: Sequence[str] = (),
    base: Settings | None = None,
    *,
    echo: Callable[[str], object] = print,
    workers: int | None = None,
    allowed: Allowed | None = None,
    report: bool = True,
) -> dict[str, Any]:
    """Run the grid, and set it beside what is published.

    `model`, `only` and `base` are as of `plan`, `workers` of `ask`, `allowed` of `score`; `report`: whether each run
    gets a page. Returns what `reproduction.json` in `out` holds: "cells" (those that were run), "rows", "void"
    (sentences: cells whose answers can't be scored) and "notes". Rows have "data", "kind", "mode" and, where there is
    one, "published" (a share), "source" and "inside" (whether the measured 95 % interval holds it). Raises `DataError`
    (something that the grid needs is missing; the message names all of it) and what `plan` and `ask` raise.
    """
    out, cells = Path(out), plan(model, only, base)
    there = [_finished(out / cell.name, cell.settings) for cell in cells]
    if lacking := missing([cell for cell, saved in zip(cells, there, strict=True) if saved is None]):
        raise DataError("The grid can't be run yet:\n" + "\n".join(f"- {one}" for one in lacking))
    runs, void, notes = [], [], [TABLE["unpublished"]]
    if any(cell.model != EMBEDDED for cell in cells):
        limited = any(cell.settings.limit or cell.settings.captions for cell in cells)
        notes = ["A limit was set: these are not the published questions, all of them."] if limited else []
        notes += [*TABLE["differences"], f"Not set beside anything: {PUBLISHED['missing']}"]
    for place, (cell, saved) in enumerate(zip(cells, there, strict=True), 1):
        folder = out / cell.name
        if saved is not None:
            echo(f"{place} of {len(cells)}: {cell.name} is finished.")
            if saved.asked["code"] not in (code_digest(adapters=False), code_digest()):
                notes.append(f"{cell.name} was run by other code ({saved.asked['code']}) than this.")
        else:
            echo(f"{place} of {len(cells)}: {cell.name}, {cell.answers:,} answers.")
            ask(cell.settings, folder, echo=echo, workers=workers)
            score(folder, allowed=allowed)
            saved = read_run(folder)
            if report:
                write_report(folder)
        scored = saved.results.data
        void += [f"{cell.name}: {sentence}" for sentence in scored["void"]]
        if not scored["void"]:
            runs.append((cell, saved))
            # what is amiss with its questions or pictures, and the first of its other warnings
            of_data = [told for task in saved.asked["tasks"] for told in task["about"].get("warnings", ())]
            notes += of_data
            if others := [told for told in scored["warnings"] if told not in of_data]:
                more = f" (and {len(others) - 1} more, see its report)" if others[1:] else ""
                notes.append(f"{cell.name}: {others[0]}{more}")
    told = {"command": COMMAND, "version": lvlm_guard.__version__, "rows": figures(runs)}
    told |= {"status": "void" if void else "complete", "void": void, "notes": list(dict.fromkeys(notes))}
    found: dict[str, Any] = finite(told | {"cells": [cell.name for cell in cells]})
    write_lines(out / "reproduction.json", [json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False)])
    return found


def _finished(folder: Path, settings: Settings) -> Run | None:
    try:
        saved = read_run(folder)
    except DataError:  # not there, or damaged: asked again, which refuses what it can't go on with
        return None
    same = saved.asked["settings"] == json.loads(json.dumps(settings.to_dict()))
    return saved if same and saved.status == "complete" else None


def look_up(model: str, data: str, kind: str, method: str, metric: str) -> dict[str, Any] | None:
    """Return a figure of one of the paper's models, or None where none is published. It has "published" (a share, 0 to
    1), "source", and "note": what is wrong with it, as printed. Arguments are as `Cell` has them, data "mean" over the
    three, too; `method` also "regular", "vcd", "dola", "opera"."""
    wanted = {"model": model, "data": data, "kind": kind, "method": method}
    for row in PUBLISHED["rows"]:
        if metric in row and wanted.items() <= row.items():
            source, note = PUBLISHED["sources"][row["source"]], row.get("note", "")
            return {"published": round(row[metric] / 100, 6), "source": source, "note": note}
    return None


def figures(runs: Sequence[tuple[Cell, Run]]) -> list[Row]:
    """Return the figures of finished cells: each data set, and the mean over the three where all are there. Intervals
    (95 %) draw pictures, of each data set for itself; differences are paired."""
    found: list[Row] = []
    for model, mode in dict.fromkeys((cell.model, cell.mode) for cell, _ in runs):
        mine = [(cell, _drawn(run)) for cell, run in runs if (cell.model, cell.mode) == (model, mode)]
        groups = [(cell.data, cell, [drawn]) for cell, drawn in mine]
        three = [(cell, drawn) for cell, drawn in mine if cell.task == "pope" and cell.data in DATA_SETS]
        if len(three) == len(DATA_SETS):
            groups.insert(0, (MEAN, three[0][0], [drawn for _, drawn in three]))
        for data, cell, together in groups:
            for kind in cell.kinds:
                task = f"pope_{kind}" if cell.task == "pope" else kind
                where = {"model": model, "data": data, "kind": kind, "mode": mode, "task": task}
                for metric in TABLE["metrics"][cell.task]:
                    found += _rows(where | {"metric": metric}, together)
    return found


_Drawn = tuple[Measured, dict[str, str]]
"""A run's one task as drawn figures, and method of a figure -> decoder of the run."""


def _drawn(run: Run) -> _Drawn:
    """Return a run's figures; all methods are sampled, as in the paper. "matched" is sampling at the lower temperature
    that is as sharp as AGLA, which tells what the local view adds."""
    (task,), decoders = run.asked["tasks"], run.asked["decoders"]
    table = run.answers(task=task["name"], split=task["split"])
    (tally,) = tallies_of(table, run.items[task["name"]].values(), [task], frozenset()).values()
    plain = [d for d in decoders if (d["role"], d["method"]) == ("control", None)]
    roles = {
        "regular": [d for d in decoders if d["role"] == "plain"],
        "matched": [d for d in plain if d["options"].get("temperature", 1) < 1],
        "agla": [d for d in decoders if (d["role"], d["sampled"]) == ("method", True)],
    }
    found = {method: mine[-1]["name"] for method, mine in roles.items() if mine}
    return Measured(tally, decoders, found["regular"], dict.fromkeys(tally.rows, 1)), found


def _rows(where: dict[str, Any], together: Sequence[_Drawn]) -> Iterator[Row]:
    (first, methods), metric = together[0], where["metric"]
    # as the published scripts read answers: AGLA's its own way, CHAIR's with its slips
    read = next(name for name in (f"{metric}_agla", f"{metric}_official", metric) if name in first.scores)
    where["n"] = sum(len(measured.places[where["task"]]) for measured, _ in together)
    drawn, beside = {}, {}
    for method in methods:
        each = [measured.figures[where["task"], names[method], read] for measured, names in together]
        # each data set draws in an order of its own: all begin with the same seed, and their pictures are others
        turned = [np.roll(figure[..., 1:], 97 * place, axis=-1) for place, figure in enumerate(each)]
        drawn[method] = np.mean([np.concatenate([f[..., :1], t], -1) for f, t in zip(each, turned, strict=True)], 0)
        beside[method] = look_up(where["model"], where["data"], where["kind"], method, metric)
        yield _row(where | {"method": method}, estimate(drawn[method]), beside[method])
    for ours, theirs in (pair for pair in DIFFERENCES if drawn.keys() >= {*pair}):
        found, (a, b), gain = difference(drawn[ours], drawn[theirs]), (beside[ours], beside[theirs]), None
        if a and b:
            apart = round(a["published"] - b["published"], 6)
            gain = a | {"published": apart, "note": f"{a['note']} {b['note']}".strip()}
        yield _row(where | {"method": f"{ours}-{theirs}"}, found, gain) | {"p_value": found.p}


def _row(told: Mapping[str, Any], found: Estimate, beside: Mapping[str, Any] | None) -> Row:
    row = {**told, "value": found.value, "low": found.low, "high": found.high}
    if beside is None:
        return row | {"published": None, "source": "", "note": "", "inside": None}
    known = found.low is not None and found.high is not None
    return row | {**beside, "inside": known and row["low"] <= beside["published"] <= row["high"]}


def dry_run_table(found: Mapping[str, Any], width: int = 120) -> Table:
    """Return the runs of the grid and how long they take."""
    told = (("run", "{name}", 0), ("questions or captions", "{items:,}", 2), ("answers", "{answers:,}", 1))
    columns = [
        Column(title, [form.format(**cell) for cell in found["cells"]], rank, text=title == "run")
        for title, form, rank in (*told, ("hours", "{hours:.2f}", 0))
    ]
    return fitted(columns, width, title="AGLA's paper: the runs")


def reproduce_tables(found: Mapping[str, Any], width: int = 120) -> list[Table]:
    """Return, for each model, POPE and CHAIR: measured, below it published, and how far they are apart, in points."""
    made = []
    for model, name in product(dict.fromkeys(row["model"] for row in found["rows"]), TABLE["columns"]):
        rows = [r for r in found["rows"] if r["model"] == model and (r["kind"] == "chair") == (name == "CHAIR")]
        made += [_table(model, name, rows, width)] if rows else []
    return made


def _table(model: str, name: str, rows: Sequence[Row], width: int) -> Table:
    places = list(dict.fromkeys((row["data"], row["kind"]) for row in rows))
    methods = list(TABLE["methods"])
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    # plain decoding first and once, then each mode of AGLA
    for row in sorted(rows, key=lambda r: (places.index((r["data"], r["kind"])), methods.index(r["method"]))):
        mode = row["mode"] if row["method"].startswith("agla") else ""
        line = (TABLE["data"][row["data"]], row["kind"], TABLE["methods"][row["method"]], mode)
        lines.setdefault(line, {}).setdefault(row["metric"], _cell(row))
    columns = [
        Column(word, [line[at] for line in lines], text=True)
        for at, word in enumerate(("data", "kind", "method", "mode"))
        if name == "POPE" or word != "kind"
    ]
    for rank, (metric, title) in enumerate(TABLE["columns"][name].items()):
        columns.append(Column(title, [line.get(metric, "–") for line in lines.values()], rank))
    paired = any(row["published"] is not None for row in rows)
    title = f"{name}, {model}: measured{' beside published' if paired else ''}"
    return fitted(columns, width, title=title, caption=TABLE["captions"]["paired" if paired else "alone"])


def _cell(row: Row) -> str:
    if row["value"] is None:
        return "–"
    signed, (scale, digits) = "p_value" in row, (1, 1) if row["metric"] == "length" else (100, 2)  # words; shares
    known = {name: scale * row[name] for name in ("value", "low", "high", "published") if row[name] is not None}
    told = {name: number(value, signed=signed, digits=digits) for name, value in known.items()}
    text = f"{told['value']} {p_text(row.get('p_value'))}".rstrip() + f"\n[{told['low']}, {told['high']}]"
    if "published" in told:
        apart = number(known["value"] - known["published"], signed=True, digits=2)
        text += f"\npubl. {told['published']} ({apart}{'' if row['inside'] else '*'})"
    return text


__all__ = ["dry_run", "dry_run_table", "reproduce", "reproduce_tables", "sentences"]
