"""Rules for CI: `accuracy_diff<-0.01` fails a run whose guard lowers accuracy by more than a point."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Rule:
    """A condition on differences, see `fail_if`."""

    text: str  # as it was given
    metric: str
    sign: str
    bound: float  # in the metric's unit: 0.01 is one point of accuracy
    task: str = ""  # a result row; "" for every one
    decoder: str = ""  # "" for every one whose role is none of `_NAMED_ONLY`

    def __call__(self, rows: Iterable[Row]) -> str | None:
        """Return a sentence with every difference for which the rule holds, or None where it holds for none.

        The difference itself decides, not its interval: of a run from its reference, of a comparison b minus a. Raises
        `DataError` where there is none, or one has no value: such a rule would pass whatever happens.
        """
        rows = list(rows)
        references = {row["decoder"] for row in rows if row["role"] == "reference"}
        found = [r for r in rows if r["baseline"] is not None and (r.get("run") or r["baseline"] in references)]
        for column in ("metric", "task", "decoder"):
            if wanted := getattr(self, column):
                found = self._of(column, wanted, found)
        if not self.decoder:
            found = [row for row in found if row["role"] not in _NAMED_ONLY]
        if not found:
            named = f"'sample:{self.metric}_diff{self.sign}{self.bound:g}'"
            raise DataError(f"{self.text!r}: only controls were compared. Name one to be held to it: {named}.")
        held = []
        for row in found:
            name = f"{row['decoder']} − {row['baseline']}"
            if row["value"] is None:
                raise DataError(f"{self.text!r}: {name} has no {self.metric} on {row['task']}.")
            if _SIGNS[self.sign](row["value"], self.bound):
                held.append(f"{name} on {row['task']}: {self.metric} {said(row)}")
        return f"{self.text} holds for {'; '.join(held)}." if held else None

    def _of(self, column: str, wanted: str, rows: Sequence[Row]) -> list[Row]:
        known = list(dict.fromkeys(row[column] for row in rows))
        if wanted not in known:
            there = f"{did_you_mean(wanted, known)}There are: {', '.join(known) or 'none, since nothing was compared'}."
            raise DataError(f"{self.text!r}: no difference has the {column} {wanted!r}. {there}")
        return [row for row in rows if row[column] == wanted]


def fail_if(text: str) -> Rule:
    """Read a rule: `[DECODER:]METRIC_diff OP NUMBER[@TASK]`, such as `agla:accuracy_diff<-0.01@pope_adversarial`;
    raises `DataError` where it is written in another way.
    """
    read = _RULE.fullmatch(text)
    if read is None:
        form = "[DECODER:]METRIC_diff OP NUMBER[@TASK], such as accuracy_diff<-0.01 or chair_i_diff>0.02@chair"
        raise DataError(f"{text!r} is no rule: write {form}.")
    decoder = (read["decoder"] or "").strip()
    return Rule(text.strip(), read["metric"], read["sign"], float(read["bound"]), read["task"] or "", decoder)
