"""A comparison of two runs on a terminal, and what it says in sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from lvlm_guard.evals.report.compare import Comparison
from lvlm_guard.evals.report.layout import HEADS
from lvlm_guard.evals.report.numbers import Mark, Row, interval, judged, p_text, said, title, written
from lvlm_guard.evals.report.tables import Column, fitted
from lvlm_guard.evals.report.terminal import STYLES

MANY = 10  # differences beyond which only the clear ones are told in sentences
CLEAR = 0.05  # the adjusted p-value below which a difference of several is called one
BESIDE: Mapping[str, tuple[tuple[str, int], ...]] = {
    "accuracy": (("accuracy_matched", 2), ("auroc", 2), ("yes_ratio", 4), ("f1", 5), ("unreadable", 8)),
    "chair_i": (("object_recall", 2), ("f1", 2), ("length", 3), ("chair_s", 4)),
}
"""Metric -> those beside it in its table, with their rank."""
TELLS = {"good": "b is better", "bad": "b is worse", "": "no clear difference"}


@dataclass(frozen=True)
class _Line:
    """A pair of decoders in one result row."""

    found: Comparison
    a: str
    b: str
    task: str

    @property
    def name(self) -> str:
        return self.a if self.a == self.b else f"{self.a} → {self.b}"

    def both(self, metric: str) -> str:
        """Write a metric of a and of b."""
        rows = [self.found.value(run, name, self.task, metric) for run, name in (("a", self.a), ("b", self.b))]
        return " → ".join(map(written, rows)) if all(rows) else "–"

    def difference(self, metric: str) -> Row | None:
        return self.found.difference(self.a, self.b, self.task, metric)


def tables(found: Comparison, width: int = 120) -> list[Table]:
    """Return a table for each metric that heads its tasks; narrower terminals get fewer columns, never cut ones."""
    made = []
    lines = _lines(found)
    heads = list(dict.fromkeys(_head(line) for line in lines))
    for metric in heads:
        own = [line for line in lines if _head(line) == metric]
        family = sum(row["metric"] == metric and row["p"] is not None for row in found.rows)
        made.append(
            fitted(
                own,
                list(_columns(metric)),
                width,
                title=f"{title(metric)}: {found.a.folder} (a) → {found.b.folder} (b)",
                caption="b − a on the same questions, [95 % interval] over pictures drawn with replacement, p by "
                f"swapping the two on pictures, adjusted (Holm) for all {family} differences of this metric.",
            )
        )
    return made


def remarks(found: Comparison) -> list[str]:
    """Return what a reader must know beside the tables: what each difference tells, and what else differs.

    Of many differences only the clear ones are told one by one.
    """
    told = [(_clear(line.difference(_head(line))), _sentence(line)) for line in _lines(found)]
    shown = told if len(told) <= MANY else [pair for pair in told if pair[0]]
    sentences = [sentence for _, sentence in shown]
    if len(shown) < len(told):
        sentences.append(f"No clear difference in the other {len(told) - len(shown)}.")
    changed = [
        f"{c.a if c.a == c.b else f'{c.a} → {c.b}'} on {c.task}: {c.changed} of {c.n} answers changed."
        for c in found.changed
    ]
    return [*sentences, *changed, *(f"The runs differ in {one}" for one in found.differs), *found.left_out]


def _lines(found: Comparison) -> list[_Line]:
    tasks = dict.fromkeys(row["task"] for row in found.rows)
    lines = [_Line(found, a, b, task) for task in tasks for a, b in found.pairs]
    return [line for line in lines if _head(line)]


def _head(line: _Line) -> str:
    """Return the metric by which a result row is first judged; "" where the pair has none."""
    known = next((metric for metric in HEADS if line.difference(metric) is not None), "")
    own = (
        r
        for r in line.found.rows
        if (r["run"], r["decoder"], r["baseline"], r["task"]) == ("b-a", line.b, line.a, line.task)
    )
    return known or next((row["metric"] for row in own), "")


def _columns(metric: str) -> Iterator[Column[_Line]]:
    yield Column("decoder", lambda line: line.name, text=True)
    yield Column("row", lambda line: line.task, text=True)
    yield Column("n", lambda line: _n(line, metric))
    yield Column("a → b", lambda line: line.both(metric))
    yield Column("b − a", lambda line: _difference(line, metric))
    yield Column("p adj.", lambda line: _adjusted(line, metric), 1)
    if metric == "accuracy":
        yield Column("fixed/\nbroken", _fixed, 3)
    for beside, rank in BESIDE.get(metric, ()):
        yield Column(title(beside).replace(" ", "\n", 1), _writer(beside), rank)


def _writer(metric: str) -> Callable[[_Line], str]:
    return lambda line: line.both(metric)


def _n(line: _Line, metric: str) -> str:
    row = line.difference(metric)
    return "–" if row is None else str(row["n"])


def _difference(line: _Line, metric: str) -> Text | str:
    row = line.difference(metric)
    if row is None or row["value"] is None:
        return "–"
    return Text.assemble((written(row), STYLES[_clear(row)]), ("\n" + interval(row), "dim"))


def _adjusted(line: _Line, metric: str) -> str:
    row = line.difference(metric)
    return (p_text(row.get("p_holm")) if row is not None else "") or "–"


def _fixed(line: _Line) -> str:
    row = line.difference("accuracy")
    return f"{row['fixed']}/{row['broken']}" if row is not None and "fixed" in row else "–"


def _clear(row: Row | None) -> Mark:
    """Return "good" or "bad" for a difference that is clear after the adjustment for how many there are."""
    p = row.get("p_holm") if row is not None else None
    return judged(row) if p is None or p < CLEAR else ""


def _sentence(line: _Line) -> str:
    head = _head(line)
    row = line.difference(head)
    assert row is not None
    counts = f"{row['fixed']} fixed, {row['broken']} broken, " if "fixed" in row else ""
    adjusted = row.get("p_holm")
    told = said(row) + (f" (adjusted {p_text(adjusted)})" if adjusted not in (None, row["p"]) else "")
    beside = [
        f"{title(metric)} {said(other)}"
        for metric in ("accuracy_matched", "auroc", "object_recall", "length")
        if (other := line.difference(metric)) is not None
    ]
    return (
        f"{line.name} on {line.task}: {counts}{title(head)} {told}: {TELLS[_clear(row)]}"
        f"{'; ' if beside else ''}{', '.join(beside)}.{_lean(line)}"
    )


def _lean(line: _Line) -> str:
    """Say where answers lean more to no, or to yes, than they did."""
    row = line.difference("yes_ratio")
    if row is None or not row["bold"]:
        return ""
    return f" It says yes {'less' if row['value'] < 0 else 'more'} often ({said(row)})."
