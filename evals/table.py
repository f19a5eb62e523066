"""A run's results on a terminal: a table for each task, a line for each decoder, its cost beside its scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from lvlm_guard.evals.figures import Row, ends, number, p_text, verdict
from lvlm_guard.evals.rows import find

WIDE, MIDDLE = 130, 96  # columns from which on everything, and intervals, are shown

Cell = Text | str


@dataclass(frozen=True)
class Column:
    """A column: its title, what stands in it, and the narrowest terminal that shows it."""

    title: str
    cell: Callable[[str], Cell]
    least: int = 0


def tables(run: Mapping[str, Any], width: int = 120) -> list[Table]:
    """Return a table for each task of `run.json`; narrower terminals get fewer columns, never cut ones."""
    rows = [*run["rows"], *run["times"]["rows"]]
    return [_table(run, task, rows, width) for task in run["tasks"]]


def _table(run: Mapping[str, Any], task: Mapping[str, Any], rows: Sequence[Row], width: int) -> Table:
    shown = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=f"{task['name']}: {run['settings']['model']}, {task['split']} split, {task['pictures']} pictures",
        title_justify="left",
        caption=_caption(task, rows),
        caption_justify="left",
    )
    columns = [column for column in _columns(run, task, rows) if column.least <= width]
    shown.add_column("decoder", no_wrap=True)
    for column in columns:
        shown.add_column(column.title, justify="right", no_wrap=True)
    names = {row["method"] for row in rows}
    for decoder in run["decoders"]:
        if decoder["name"] in names and _answered(task, rows, decoder["name"]):
            shown.add_row(decoder["name"], *(column.cell(decoder["name"]) for column in columns))
    return shown


def row_tasks(task: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """Return the names of the result rows of a task, in order."""
    names = list(dict.fromkeys(row["task"] for row in rows if row["metric"] in _HEADLINES))
    return [name for name in names if name in _own(task)]


_HEADLINES = ("accuracy", "chair_i", "score")


def _own(task: Mapping[str, Any]) -> Sequence[str]:
    return list(task.get("rows") or (task["name"],))


def _answered(task: Mapping[str, Any], rows: Sequence[Row], decoder: str) -> bool:
    return any(find(rows, decoder, name, "seconds") for name in (task["name"],)) or any(
        row["method"] == decoder and row["task"] in _own(task) for row in rows
    )


def _columns(run: Mapping[str, Any], task: Mapping[str, Any], rows: Sequence[Row]) -> list[Column]:
    reference = run["reference"]
    names = row_tasks(task, rows)

    def value(name: str, metric: str, *, interval: bool = False, plain: bool = False) -> Callable[[str], Cell]:
        return lambda decoder: _value(find(rows, decoder, name, metric), interval=interval, plain=plain)

    def difference(name: str, metric: str) -> Callable[[str], Cell]:
        return lambda decoder: _difference(decoder, reference, find(rows, f"{decoder}-{reference}", name, metric))

    cost = [
        Column("time\n×greedy", lambda d: _ratio(find(rows, d, task["name"], "time_ratio"))),
        Column("local\nfwd", value(task["name"], "local_forwards", plain=True), WIDE),
        Column("masks", value(task["name"], "masks", plain=True), WIDE),
        Column("peak\nMiB", lambda d: _whole(find(rows, d, task["name"], "peak_memory_mib")), WIDE),
    ]
    if task["kind"] == "pope":
        main = names[-1] if names else task["name"]
        hardest = next((n for n in names if n.endswith("adversarial")), main)
        shown = [Column(_short(n), value(n, "accuracy"), WIDE) for n in names if n not in (main, hardest)]
        if hardest != main:
            shown += [
                Column(_short(hardest), value(hardest, "accuracy", interval=True)),
                Column(f"against\n{reference}", difference(hardest, "accuracy")),
            ]
        return [
            *shown,
            Column(_short(main), value(main, "accuracy", interval=True)),
            Column(f"against\n{reference}", difference(main, "accuracy")),
            Column("fixed/\nbroken", lambda d: _fixed(find(rows, f"{d}-{reference}", main, "accuracy")), MIDDLE),
            Column("F1", value(main, "f1"), MIDDLE),
            Column("yes\nratio", value(main, "yes_ratio"), MIDDLE),
            *cost,
        ]
    if task["kind"] == "chair":
        main = names[0] if names else task["name"]
        return [
            Column("CHAIR_i\n(less!)", value(main, "chair_i", interval=True)),
            Column(f"against\n{reference}", difference(main, "chair_i")),
            Column("CHAIR_s\n(less!)", value(main, "chair_s"), MIDDLE),
            Column("object\nrecall", value(main, "object_recall")),
            Column(f"against\n{reference}", difference(main, "object_recall"), MIDDLE),
            Column("objects\nnamed", value(main, "objects_named", plain=True), WIDE),
            Column("words", value(main, "length", plain=True), MIDDLE),
            *cost,
        ]
    metrics = list(dict.fromkeys((r["task"], r["metric"]) for r in rows if r["task"] in _own(task)))
    own = [(t, m) for t, m in metrics if m not in _NOT_SCORES][:4]
    return [
        *(
            column
            for name, metric in own
            for column in (
                Column(f"{_short(name)}\n{metric}", value(name, metric, interval=True, plain=True)),
                Column(f"against\n{reference}", difference(name, metric), MIDDLE),
            )
        ),
        *cost,
    ]


_NOT_SCORES = frozenset(
    {"seconds", "time_ratio", "peak_memory_mib", "tokens", "global_forwards", "local_forwards", "masks"}
)


def _short(name: str) -> str:
    head, _, tail = name.partition("_")
    return f"{head.upper()}\n{'adv.' if tail == 'adversarial' else tail}" if tail else name


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


def _caption(task: Mapping[str, Any], rows: Sequence[Row]) -> str:
    names = row_tasks(task, rows)
    n = ", ".join(f"{_short(name).replace(chr(10), ' ')} {_n(rows, name)}" for name in names)
    what = "captions" if task["kind"] == "chair" else "questions"
    return (
        f"{what.capitalize()}: {n or task['n']}. [95 % interval] of the value and of the paired difference, pictures "
        "drawn with replacement; p by swapping the two on pictures, not adjusted (run.json has p_holm). Time: the "
        "request's, picture and mask included."
    )


def _n(rows: Sequence[Row], name: str) -> int:
    return next((int(row["n"]) for row in rows if row["task"] == name), 0)
