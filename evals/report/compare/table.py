"""A comparison of two runs on a terminal, and what it says in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from lvlm_guard.evals.report.compare import Comparison
from lvlm_guard.evals.report.figures import NAMES, Row, ends, number, p_text, said, verdict
from lvlm_guard.evals.report.fitted import Column, fitted
from lvlm_guard.evals.stats.results import drawn, find

MANY = 10  # differences beyond which only the clear ones are told in sentences
HEADLINES = ("accuracy", "chair_i", "score")
COLOURS = {"good": "bold green", "bad": "bold red", "": ""}


@dataclass(frozen=True)
class _Line:
    """A pair of decoders in one result row."""

    a: str
    b: str
    task: str
    rows: Sequence[Row]

    @property
    def name(self) -> str:
        """Who is compared."""
        return _name(self.a, self.b)

    def both(self, metric: str, *, plain: bool = False) -> str:
        """Write a metric of a and of b."""
        found = [find(self.rows, name, self.task, metric) for name in (f"a:{self.a}", f"b:{self.b}")]
        if any(row is None for row in found):
            return "–"
        values = [row["value"] for row in found if row is not None]
        return " → ".join("–" if v is None else f"{v:.2f}" if plain else number(v) for v in values)

    def difference(self, metric: str) -> Row | None:
        """Return the row of b minus a."""
        return find(self.rows, f"b:{self.b}-a:{self.a}", self.task, metric)


def tables(found: Comparison, width: int = 120) -> list[Table]:
    """Return a table for each metric that heads its tasks; narrower terminals get fewer columns, never cut ones."""
    made = []
    for metric in (*HEADLINES, *_others(found)):
        lines = [line for line in _lines(found) if line.difference(metric) is not None]
        if metric in _others(found):
            lines = [line for line in lines if not any(line.difference(known) for known in HEADLINES)]
        if lines:
            made.append(_table(found, metric, lines, width))
    return made


def remarks(found: Comparison) -> list[str]:
    """Return what a reader must know beside the tables: what each difference tells, and what else differs.

    Of many differences only the clear ones are told one by one.
    """
    told = [pair for line in _lines(found) for pair in _told(line)]
    shown = told if len(told) <= MANY else [pair for pair in told if pair[0]]
    sentences = [sentence for _, sentence in shown]
    if len(shown) < len(told):
        sentences.append(f"No clear difference in the other {len(told) - len(shown)}.")
    changed = [f"{_name(c.a, c.b)} on {c.task}: {c.changed} of {c.n} answers changed." for c in found.changed]
    return [*sentences, *changed, *(f"The runs differ in {one}" for one in found.differs), *found.left_out]


def _name(a: str, b: str) -> str:
    return a if a == b else f"{a} → {b}"


def _others(found: Comparison) -> list[str]:
    """Return the metrics of tasks of lmms-eval, which have names of their own."""
    stock = {task["name"] for task in found.tasks if task["kind"] == "stock"}
    return list(dict.fromkeys(r["metric"] for r in found.rows if r["task"] in stock and r["metric"] not in HEADLINES))


def _lines(found: Comparison) -> list[_Line]:
    tasks = dict.fromkeys(row["task"] for row in found.rows)
    lines = [_Line(a, b, task, found.rows) for task in tasks for a, b in found.pairs]
    return [line for line in lines if any(r["method"] == f"b:{line.b}-a:{line.a}" for r in found.rows)]


def _table(found: Comparison, metric: str, lines: Sequence[_Line], width: int) -> Table:
    again, of = drawn([*found.a.run["decoders"], *found.b.run["decoders"]])
    return fitted(
        lines,
        list(_columns(found, metric)),
        width,
        title=f"{NAMES.get(metric, metric)}: {found.a.folder} (a) → {found.b.folder} (b)",
        caption=f"b − a on the same questions, [95 % interval] over {again}, p by swapping the two on pictures{of}, "
        f"adjusted (Holm) for all {_family(found, metric)} differences of this metric.",
    )


def _family(found: Comparison, metric: str) -> int:
    return sum(row["metric"] == metric and row.get("p_value") is not None for row in found.rows)


def _columns(found: Comparison, metric: str) -> Iterator[Column[_Line]]:
    yield Column("decoder", lambda line: line.name, text=True)
    yield Column("row", lambda line: line.task, text=True)
    plain = metric not in ("accuracy", "chair_i")
    yield Column("n", lambda line: str(_n(found, line, metric)))
    yield Column("a → b", lambda line: line.both(metric, plain=plain))
    yield Column("b − a", lambda line: _difference(line, metric))
    yield Column("p adj.", lambda line: _adjusted(line, metric), 1)
    if metric == "accuracy":
        yield Column("fixed/\nbroken", _fixed, 2)
        yield Column("McNemar", _mcnemar, 5)
        yield Column("F1", lambda line: line.both("f1"), 3)
        yield Column("yes ratio", lambda line: line.both("yes_ratio"), 4)
        yield Column("yes in\nlabels", lambda line: _labels(found, line), 7)
        yield Column("unreadable", lambda line: line.both("unreadable"), 8)
    if metric == "chair_i":
        yield Column("CHAIR_s", lambda line: line.both("chair_s"), 3)
        yield Column("recall", lambda line: line.both("object_recall"), 2)
        yield Column("words", lambda line: line.both("length", plain=True), 4)
    yield Column("seconds", lambda line: _seconds(found, line), 6)


def _n(found: Comparison, line: _Line, metric: str) -> int:
    return int(next(row["n"] for row in found.rows if row["task"] == line.task and row["metric"] == metric))


def _difference(line: _Line, metric: str) -> Text | str:
    row = line.difference(metric)
    if row is None or row["value"] is None:
        return "–"
    return Text.assemble(
        (number(row["value"], signed=True), COLOURS[_judged(row)]), ("\n" + ends(row, signed=True), "dim")
    )


def _adjusted(line: _Line, metric: str) -> str:
    row = line.difference(metric)
    return p_text(row["p_holm"]) if row is not None and row.get("p_holm") is not None else "–"


def _fixed(line: _Line) -> str:
    row = line.difference("accuracy")
    return f"{row['fixed']}/{row['broken']}" if row is not None and "fixed" in row else "–"


def _mcnemar(line: _Line) -> str:
    row = line.difference("accuracy")
    return p_text(row["mcnemar_p"]) if row is not None and "mcnemar_p" in row else "–"


def _labels(found: Comparison, line: _Line) -> str:
    row = next((r for r in found.rows if r["task"] == line.task and r["metric"] == "label_yes"), None)
    return number(row["value"]) if row is not None else "–"


def _seconds(found: Comparison, line: _Line) -> str:
    names = {task["name"] for task in found.tasks if line.task in (task.get("rows") or [task["name"]])}
    names |= {line.task} | ({task["name"] for task in found.tasks} if len(found.tasks) == 1 else set())
    told = []
    for name in (f"a:{line.a}", f"b:{line.b}"):
        row = next(
            (r for r in found.times if r["method"] == name and r["task"] in names and r["metric"] == "seconds"), None
        )
        told.append("–" if row is None or row["value"] is None else f"{row['value']:.3g}")
    return " → ".join(told)


def _told(line: _Line) -> Iterator[tuple[str, str]]:
    """Yield "good", "bad" or "" (unclear), and a sentence, for accuracy and for CHAIR_i."""
    accuracy, wrong = line.difference("accuracy"), line.difference("chair_i")
    if accuracy is not None:
        counts = f"{accuracy['fixed']} fixed, {accuracy['broken']} broken, " if "fixed" in accuracy else ""
        told = f"{counts}accuracy {_said(accuracy)}: {_TELLS[_judged(accuracy)]}.{_trade(line)}"
        yield _judged(accuracy), f"{line.name} on {line.task}: {told}"
    if wrong is not None:
        beside = [
            f"{NAMES[metric]} {said(row)}" for metric in ("object_recall", "length") if (row := line.difference(metric))
        ]
        told = f"CHAIR_i {_said(wrong)}: {_TELLS[_judged(wrong)]}; {', '.join(beside)}."
        yield _judged(wrong), f"{line.name} on {line.task}: {told}"


_TELLS = {"good": "b is better", "bad": "b is worse", "": "no clear difference"}


def _judged(row: Row) -> str:
    """Return `figures.verdict`, by the p-value that is adjusted for how many differences there are."""
    return verdict(row | {"p_value": row.get("p_holm", row["p_value"])})


def _said(row: Row) -> str:
    adjusted = row.get("p_holm")
    return said(row) + (f" (adjusted {p_text(adjusted)})" if adjusted not in (None, row["p_value"]) else "")


def _trade(line: _Line) -> str:
    """Say where a gain comes from answering no, or yes, more often."""
    precision, recall, yes = (line.difference(metric) for metric in ("precision", "recall", "yes_ratio"))
    if precision is None or recall is None or yes is None:
        return ""
    ups = verdict(precision), verdict(recall)
    if ups == ("good", "bad"):
        return f" It says yes less often ({said(yes)}): precision {said(precision)}, recall {said(recall)}."
    if ups == ("bad", "good"):
        return f" It says yes more often ({said(yes)}): precision {said(precision)}, recall {said(recall)}."
    return ""
