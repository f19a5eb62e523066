"""A comparison of two runs on a terminal, and what it says in sentences."""

from __future__ import annotations

from rich.table import Table

from lvlm_guard.evals.report import terminal
from lvlm_guard.evals.report.compare import Comparison
from lvlm_guard.evals.report.numbers import Mark, Row, judged, p_text, said, title

MANY = 10  # differences beyond which only the clear ones are told in sentences
CLEAR = 0.05  # the adjusted p-value below which a difference of several is called one
TELLS = {"good": "b is better", "bad": "b is worse", "": "no clear difference"}
BESIDE = ("accuracy_matched", "auroc", "object_recall", "length")


def tables(found: Comparison, width: int = 120) -> list[Table]:
    """Return a table for each task; narrower terminals get fewer columns, never cut ones."""
    caption = (
        "Beside b's value its difference b − a on the same questions, below it that difference's 95 % interval, "
        "pictures drawn with replacement; coloured where it leaves out zero."
    )
    return terminal.tables(found.results, width, f"{found.a.folder} (a) → {found.b.folder} (b)", caption)


def remarks(found: Comparison) -> list[str]:
    """Return what a reader must know beside the tables: what each difference tells, and what else differs.

    Of many differences only the clear ones are told one by one: those that stay so when p is adjusted (Holm) for all
    differences of their metric.
    """
    told = [
        (_clear(row), _sentence(found, row, name))
        for task in found.tasks
        for row_task in found.results.row_tasks(task)
        for name in found.results.baselines
        for _, metric in found.results.main(task)[:1]
        if (row := found.results.difference(row_task, name, metric)) is not None
    ]
    shown = told if len(told) <= MANY else [pair for pair in told if pair[0]]
    sentences = [sentence for _, sentence in shown]
    if len(shown) < len(told):
        sentences.append(f"No clear difference in the other {len(told) - len(shown)}.")
    moved = [c for c in found.changed if c.changed]
    changed = [f"{pair_name(c.a, c.b)} on {c.task}: {c.changed} of {c.n} answers changed." for c in moved]
    if len(moved) < len(found.changed):
        changed.append(f"No answer changed in the other {len(found.changed) - len(moved)} pairs of decoder and task.")
    return [*sentences, *changed, *(f"a and b differ: {one}" for one in found.differs), *found.left_out]


def pair_name(a: str, b: str) -> str:
    """Return what a pair of decoders is called."""
    return a if a == b else f"{a} → {b}"


def _clear(row: Row) -> Mark:
    """Return "good" or "bad" for a difference that is clear after the adjustment for how many there are."""
    p = row.get("p_holm")
    return judged(row) if p is None or p < CLEAR else ""


def _sentence(found: Comparison, row: Row, name: str) -> str:
    results = found.results
    counts = f"{row['fixed']} fixed, {row['broken']} broken, " if "fixed" in row else ""
    adjusted = row.get("p_holm")
    told = said(row) + (f" (adjusted {p_text(adjusted)})" if adjusted not in (None, row["p"]) else "")
    others = [(metric, results.difference(row["task"], name, metric)) for metric in BESIDE]
    beside = "".join(f", {title(metric)} {said(other)}" for metric, other in others if other is not None)
    yes = results.difference(row["task"], name, "yes_ratio")
    lean = ""
    if yes is not None and yes["bold"]:
        lean = f" It says yes {'less' if yes['value'] < 0 else 'more'} often ({said(yes)})."
    pair = next(pair_name(a, b) for a, b in found.pairs if f"b: {b}" == name)
    return f"{pair} on {row['task']}: {counts}{title(row['metric'])} {told}: {TELLS[_clear(row)]}{beside}.{lean}"
