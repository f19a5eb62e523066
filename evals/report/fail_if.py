"""Rules for CI: `accuracy_diff<-0.01` fails a run whose guard lowers accuracy by more than a point."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable

from lvlm_guard.errors import did_you_mean
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.report.layout import Row, said

_RULE = re.compile(
    r"\s*(?:(?P<decoder>[^:<>]+):)?\s*(?P<metric>[\w@]+?)_diff\s*(?P<sign><=|>=|<|>)\s*(?P<bound>[-+]?"
    r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?:@\s*(?P<task>\S+))?\s*"
)
_SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_NAMED_ONLY = ("plain", "control", "matcher")
"""Roles that are worse on purpose, or no guard at all: a rule means them only where it names the decoder."""


def fail_if(text: str) -> Callable[[Iterable[Row]], str | None]:
    """Read a rule: `[DECODER:]METRIC_diff OP NUMBER[@TASK]`, such as `agla:accuracy_diff<-0.01@pope_adversarial`.

    Of rows it returns a sentence with every difference for which it holds, or None where it holds for none. The
    difference itself decides, not its interval: of a run from its reference, of a comparison b minus a. Raises
    `DataError` where it is written in another way; called, where there is no such difference, or one has no value: such
    a rule would pass whatever happens.
    """
    read, text = _RULE.fullmatch(text), text.strip()
    if read is None:
        form = "[DECODER:]METRIC_diff OP NUMBER[@TASK], such as accuracy_diff<-0.01 or chair_i_diff>0.02@chair"
        raise DataError(f"{text!r} is no rule: write {form}.")
    decoder, metric, sign, bound = (read["decoder"] or "").strip(), read["metric"], read["sign"], float(read["bound"])

    def rule(rows: Iterable[Row]) -> str | None:
        rows = list(rows)
        references = {row["decoder"] for row in rows if row["role"] == "reference"}
        found = [r for r in rows if r["baseline"] is not None and (r.get("run") or r["baseline"] in references)]
        for column, wanted in (("metric", metric), ("task", read["task"]), ("decoder", decoder)):
            known = list(dict.fromkeys(row[column] for row in found))
            if wanted and wanted not in known:
                there = f"There are: {', '.join(known) or 'none, since nothing was compared'}."
                told = f"no difference has the {column} {wanted!r}. {did_you_mean(wanted, known)}{there}"
                raise DataError(f"{text!r}: {told}")
            found = [row for row in found if row[column] == wanted or not wanted]
        found = [row for row in found if decoder or row["role"] not in _NAMED_ONLY]
        if not found:
            named = f"'sample:{metric}_diff{sign}{bound:g}'"
            raise DataError(f"{text!r}: only controls were compared. Name one to be held to it: {named}.")
        held = []
        for row in found:
            name = f"{row['decoder']} − {row['baseline']}"
            if row["value"] is None:
                raise DataError(f"{text!r}: {name} has no {metric} on {row['task']}.")
            if _SIGNS[sign](row["value"], bound):
                held.append(f"{name} on {row['task']}: {metric} {said(row)}")
        return f"{text} holds for {'; '.join(held)}." if held else None

    return rule
