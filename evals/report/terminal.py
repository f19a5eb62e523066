"""A run's results on a terminal: a table for each task, a line for each decoder, its cost beside its scores.

for table in tables(results, width):
    console.print(table)
print(*sentences(results), sep="\\n")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from lvlm_guard.evals.report import layout
from lvlm_guard.evals.report.layout import Results, plain_cell
from lvlm_guard.evals.report.numbers import interval, judged, said, title, written
from lvlm_guard.evals.report.tables import Column, fitted

STYLES = {"good": "bold green", "bad": "bold red", "": ""}
SHORTER = 0.05  # a change of a caption's length, as a share, that a sentence mentions
Line = Mapping[str, Any]


def tables(results: Results | Mapping[str, Any], width: int = 120, about: str = "", caption: str = "") -> list[Table]:
    """Return a table for each task; narrower terminals get fewer columns, never cut ones. None of a void run.

    `about`: what the tables are of, else the model; `caption`: what stands below, else what the figures are.
    """
    known = results if isinstance(results, Results) else Results(results)
    if known.data["void"]:
        return []
    about = about or known.data.get("settings", {}).get("model", "")
    return [_table(known, task, width, about, caption or explained(known, task)) for task in known.tasks]


def _table(results: Results, task: Mapping[str, Any], width: int, about: str, caption: str) -> Table:
    columns = [Column[Line]("decoder", _name, text=True)]
    columns += [Column(one.title, _cell(results, one), one.rank) for one in results.columns(task)]
    title = f"{task['name']}: {about}, {task['split']} split, {task['n']} items on {task['pictures']} pictures"
    return fitted(results.lines(task), columns, width, title=title, caption=caption)


def _name(decoder: Line) -> Text:
    return Text(decoder["name"], "dim" if decoder["role"] in ("plain", "control") else "")


def _cell(results: Results, column: layout.Column) -> Callable[[Line], Text | str]:
    def cell(decoder: Line) -> Text | str:
        row = results.value(column.row, decoder["name"], column.metric)
        if column.shows != "difference":
            return plain_cell(results, column, decoder["name"])
        change = results.difference(column.row, decoder["name"], column.metric)
        if change is None:
            return Text.assemble(written(row), ("\n" + interval(row), "dim"))
        return Text.assemble(
            f"{written(row)} ", (written(change), STYLES[judged(change)]), ("\n" + interval(change), "dim")
        )

    return cell


def explained(results: Results, task: Mapping[str, Any]) -> str:
    """Return what a table's figures are, in a few sentences."""
    n = {row: max(r["n"] for r in results.rows if r["task"] == row) for row in results.row_tasks(task)}
    counted = ", ".join(f"{row} {n}" for row, n in n.items())
    return (
        f"n: {counted}. Beside a value its paired difference to {results.reference}, below it that difference's 95 % "
        f"interval ({results.reference}: the value's), pictures drawn with replacement; coloured where it is clear. "
        "Time: the request's, picture and mask included."
    )


def sentences(results: Results | Mapping[str, Any]) -> list[str]:
    """Return what a reader must know of the results, sentence by sentence; none of a void run."""
    known = results if isinstance(results, Results) else Results(results)
    if known.data["void"]:
        return []
    told = [f"{v['decoder']} on {v['task']}: {v['verdict']}. {v['sentence']}" for v in known.verdicts()]
    for task in known.tasks:
        told += [*_captions(known, task), *_matchers(known, task)]
    told += [check["sentence"] for check in known.data.get("checks", ()) if check["passed"]]
    told += [task["about"]["limits"] for task in known.tasks if task.get("about", {}).get("limits")]
    return list(dict.fromkeys(told))


def _captions(results: Results, task: Mapping[str, Any]) -> Iterator[str]:
    for name in results.row_tasks(task):
        for decoder in results.lines(task):
            wrong = results.difference(name, decoder["name"], "chair_i")
            recall = results.difference(name, decoder["name"], "object_recall")
            if decoder["role"] not in layout.JUDGED or wrong is None or recall is None:
                continue
            effect = {"good": "names fewer absent objects", "bad": "names more absent objects"}.get(
                judged(wrong), "has no clear effect on absent objects"
            )
            yield (
                f"{decoder['name']} on {name}: {effect}, CHAIR_i {said(wrong)}; object recall {said(recall)}"
                f"{''.join(_beside(results, name, decoder['name']))}."
            )


def _matchers(results: Results, task: Mapping[str, Any]) -> Iterator[str]:
    """Say how a method with one matcher differs from itself with another, by what the task is first judged by."""
    methods = {decoder["name"]: decoder["method"] for decoder in results.decoders if decoder["role"] == "method"}
    for ours, theirs in results.pairs(task):
        if ours in methods and methods.get(theirs) == methods[ours]:
            for row, metric in results.main(task):
                if difference := results.difference(row, ours, metric, theirs):
                    yield f"{ours} − {theirs} on {row}: {title(metric)} {said(difference)}."


def _beside(results: Results, row: str, decoder: str) -> Iterator[str]:
    """Say whether it says less, which alone lowers CHAIR, or repeats itself: CHAIR_i counts each time it names one."""
    for metric in ("length", "repeats"):
        ours, plain = (results.value(row, name, metric) for name in (decoder, results.reference))
        if ours is None or plain is None or not plain["value"]:
            continue
        change = ours["value"] / plain["value"] - 1
        if metric == "repeats":
            told = f"{ours['value']:.0%} of its object words repeat one of the same caption"
            yield f"; {told} ({results.reference}: {plain['value']:.0%})"
        elif abs(change) >= SHORTER:
            yield f"; its captions are {abs(change):.0%} {'shorter' if change < 0 else 'longer'}"
