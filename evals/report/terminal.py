"""A run's results on a terminal: a table for each task, a line for each decoder, its cost beside its scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from lvlm_guard.evals.report.figures import Row, ends, number, p_text, verdict
from lvlm_guard.evals.report.fitted import Column, fitted
from lvlm_guard.evals.stats.costs import WORK
from lvlm_guard.evals.stats.results import drawn, find

Cell = Text | str


def tables(run: Mapping[str, Any], width: int = 120) -> list[Table]:
    """Return a table for each task of `run.json`; narrower terminals get fewer columns, never cut ones."""
    rows = [*run["rows"], *run["times"]["rows"]]
    return [_table(run, task, rows, width) for task in run["tasks"]]


def _table(run: Mapping[str, Any], task: Mapping[str, Any], rows: Sequence[Row], width: int) -> Table:
    answered = {row["method"] for row in rows if row["task"] == task["name"] and row["metric"] == "tokens"}
    names = [decoder["name"] for decoder in run["decoders"] if decoder["name"] in answered]
    columns = [Column[str]("decoder", str, text=True), *_columns(run, task, rows)]
    title = f"{task['name']}: {run['settings']['model']}, {task['split']} split, {task['pictures']} pictures"
    return fitted(names, columns, width, title=title, caption=_caption(run, task, rows))


def row_tasks(task: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """Return the names of the result rows of a task, in order."""
    scored = dict.fromkeys(row["task"] for row in rows if row["metric"] not in _NOT_SCORES)
    return [name for name in scored if _is_of(name, task)]


def whole_of(task: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return the result row of all questions of a task."""
    names = row_tasks(task, rows)
    return next((n for n in names if n.partition("@")[0].endswith("_all")), names[-1] if names else task["name"])


def hardest_of(task: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return the result row of the adversarial questions, where there are any; else that of all."""
    names = row_tasks(task, rows)
    return next((n for n in names if n.partition("@")[0].endswith("adversarial")), whole_of(task, rows))


def _is_of(row: str, task: Mapping[str, Any]) -> bool:
    """Whether a result row is of a task: one of its own, or all of them together, see `scoring.measure`."""
    name, _, owner = row.partition("@")
    own = task.get("rows") or (task["name"],)
    together = name.endswith("_all") and (name[:-4] == task["name"] or own[0].startswith(name[:-4]))
    return owner in ("", task["name"]) and (name in own or together)


def _columns(run: Mapping[str, Any], task: Mapping[str, Any], rows: Sequence[Row]) -> list[Column[str]]:
    reference = run["reference"]
    names = row_tasks(task, rows)

    def value(name: str, metric: str, *, interval: bool = False, plain: bool = False) -> Callable[[str], Cell]:
        return lambda decoder: _value(find(rows, decoder, name, metric), interval=interval, plain=plain)

    def difference(name: str, metric: str) -> Callable[[str], Cell]:
        return lambda decoder: _difference(decoder, reference, find(rows, f"{decoder}-{reference}", name, metric))

    cost = [
        Column("time\n×greedy", lambda d: _ratio(find(rows, d, task["name"], "time_ratio"))),
        Column("local\ntokens", value(task["name"], "local_tokens", plain=True), 5),
        Column("masks", value(task["name"], "masks", plain=True), 6),
        Column("peak\nMiB", lambda d: _whole(find(rows, d, task["name"], "peak_memory_mib")), 7),
    ]
    if task["kind"] == "pope":
        main, hardest = whole_of(task, rows), hardest_of(task, rows)
        shown = [Column(_short(n), value(n, "accuracy"), 8) for n in names if n not in (main, hardest)]
        if hardest != main:
            shown += [
                Column(_short(hardest), value(hardest, "accuracy", interval=True)),
                Column(f"{_tail(hardest)} −\n{reference}", difference(hardest, "accuracy")),
            ]
        return [
            *shown,
            Column(_short(main), value(main, "accuracy", interval=True), 0 if hardest == main else 3),
            Column(f"{_tail(main)} −\n{reference}", difference(main, "accuracy")),
            Column("fixed/\nbroken", lambda d: _fixed(find(rows, f"{d}-{reference}", main, "accuracy")), 4),
            Column("F1", value(main, "f1"), 2),
            Column("yes\nratio", value(main, "yes_ratio"), 1),
            *cost,
        ]
    if task["kind"] == "chair":
        main = names[0] if names else task["name"]
        return [
            Column("CHAIR_i\n(less!)", value(main, "chair_i", interval=True)),
            Column(f"CHAIR_i −\n{reference}", difference(main, "chair_i")),
            Column("CHAIR_s\n(less!)", value(main, "chair_s"), 2),
            Column("object\nrecall", value(main, "object_recall")),
            Column(f"recall −\n{reference}", difference(main, "object_recall"), 3),
            Column("objects\nnamed", value(main, "objects_named", plain=True), 4),
            Column("words", value(main, "length", plain=True), 1),
            *cost,
        ]
    if task["kind"] == "mme":
        main = whole_of(task, rows)
        return [
            Column("points", value(main, "score", interval=True, plain=True)),
            Column(f"points −\n{reference}", difference(main, "score")),
            *(Column(n, value(n, "score", plain=True), 4) for n in names if n != main),
            Column("accuracy", value(main, "accuracy"), 2),
            Column("acc+", value(main, "accuracy_plus"), 3),
            Column("yes\nratio", value(main, "yes_ratio"), 1),
            *cost,
        ]
    metrics = dict.fromkeys((r["task"], r["metric"]) for r in rows if _is_of(r["task"], task))
    own = [(t, m) for t, m in metrics if m not in _NOT_SCORES][:4]
    return [
        *(
            column
            for name, metric in own
            for column in (
                Column(f"{_short(name)}\n{metric}", value(name, metric, interval=True, plain=True)),
                Column(f"{metric} −\n{reference}", difference(name, metric), 1),
            )
        ),
        *cost,
    ]


_NOT_SCORES = frozenset({"seconds", "time_ratio", "peak_memory_mib", *WORK.values()})


def _short(name: str) -> str:
    head, line, _ = name.partition("_")
    return f"{head.upper()}\n{_tail(name)}" if line else name


def _tail(name: str) -> str:
    name = name.partition("@")[0]  # the table's title names the task
    tail = name.partition("_")[2] or name
    return tail.replace("adversarial", "adv.")


def _value(row: Row | None, *, interval: bool, plain: bool) -> Cell:
    if row is None or row["value"] is None:
        return "–"
    text = f"{row['value']:.2f}" if plain else number(row["value"])
    return Text.assemble(text, ("\n" + ends(row), "dim")) if interval and row["low"] is not None else text


def _difference(decoder: str, reference: str, row: Row | None) -> Cell:
    if row is None:
        return "" if decoder == reference else "–"
    style = {"good": "bold green", "bad": "bold red", "": ""}[verdict(row)]
    return Text.assemble(
        (number(row["value"], signed=True), style), f" {p_text(row['p_value'])}", ("\n" + ends(row, signed=True), "dim")
    )


def _fixed(row: Row | None) -> str:
    return f"{row['fixed']}/{row['broken']}" if row is not None and row.get("fixed") is not None else ""


def _ratio(row: Row | None) -> str:
    return f"{row['value']:.2f}" if row is not None else "–"


def _whole(row: Row | None) -> str:
    return f"{row['value']:.0f}" if row is not None else "–"


def _caption(run: Mapping[str, Any], task: Mapping[str, Any], rows: Sequence[Row]) -> str:
    names = row_tasks(task, rows)
    n = ", ".join(f"{_short(name).replace(chr(10), ' ')} {_n(rows, name)}" for name in names)
    again, of = drawn(run["decoders"])
    what = "captions" if task["kind"] == "chair" else "questions"
    return (
        f"{what.capitalize()}: {n or task['n']}. [95 % interval] of the value and of the paired difference, "
        f"{again} drawn with replacement; p by swapping the two on pictures{of}, not adjusted (run.json has p_holm). "
        "Time: the request's, picture and mask included. Local tokens: read by second branches."
    )


def _n(rows: Sequence[Row], name: str) -> int:
    return next((int(row["n"]) for row in rows if row["task"] == name), 0)
