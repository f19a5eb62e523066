"""Rules for CI: `accuracy_diff<-0.01` fails a run whose guard lowers accuracy by more than a point."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lvlm_guard.errors import did_you_mean
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.report.numbers import Row, said

_RULE = re.compile(
    r"\s*(?:(?P<decoder>[^:<>]+):)?\s*(?P<metric>[\w@]+?)_diff\s*(?P<sign><=|>=|<|>)\s*(?P<bound>[^@\s]+)"
    r"\s*(?:@\s*(?P<task>\S+))?\s*"
)
_SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_NAMED_ONLY = ("plain", "control", "matcher")
"""Roles that are worse on purpose, or no guard at all: a rule means them only where it names the decoder."""


@dataclass(frozen=True)
class Rule:
    """A condition on differences, see `fail_if`.

    Args:
        text: as it was given.
        metric: whose difference.
        sign: "<", "<=", ">" or ">=".
        bound: what it is compared with, in the metric's unit (0.01 is one point of accuracy).
        task: name of a result row; "" for every one.
        decoder: whose difference; "" for every one whose role is none of `_NAMED_ONLY`.
    """

    text: str
    metric: str
    sign: str
    bound: float
    task: str = ""
    decoder: str = ""

    def __call__(self, rows: Iterable[Row]) -> str | None:
        """Return a sentence with every difference for which the rule holds, or None where it holds for none.

        The difference itself decides, not its interval.

        Args:
            rows: of a run (differences from its reference count) or of a comparison of two runs (b minus a).

        Raises:
            DataError: there is no such difference, or one has no value; a rule that nothing is held against would
                pass whatever happens.
        """
        held = [row for row in self._chosen(_differences(list(rows))) if _SIGNS[self.sign](row["value"], self.bound)]
        if not held:
            return None
        told = "; ".join(f"{_name(row)} on {row['task']}: {self.metric} {said(row)}" for row in held)
        return f"{self.text} holds for {told}."

    def _chosen(self, rows: Sequence[Row]) -> list[Row]:
        self._known("metric", self.metric, [row["metric"] for row in rows])
        found = [row for row in rows if row["metric"] == self.metric]
        if self.task:
            self._known("task", self.task, [row["task"] for row in found])
            found = [row for row in found if row["task"] == self.task]
        if self.decoder:
            self._known("decoder", self.decoder, [row["decoder"] for row in found])
            found = [row for row in found if row["decoder"] == self.decoder]
        else:
            found = [row for row in found if row["role"] not in _NAMED_ONLY]
        if not found:
            raise DataError(
                f"{self.text!r}: only controls were compared. Name one to be held to it: 'sample:{self.metric}_diff"
                f"{self.sign}{self.bound:g}'."
            )
        empty = [row for row in found if row["value"] is None]
        if empty:
            raise DataError(f"{self.text!r}: {_name(empty[0])} has no {self.metric} on {empty[0]['task']}.")
        return found

    def _known(self, what: str, name: str, names: Iterable[str]) -> None:
        known = list(dict.fromkeys(names))
        if name not in known:
            raise DataError(
                f"{self.text!r}: no difference has the {what} {name!r}. "
                + did_you_mean(name, known)
                + f"There are: {', '.join(known) or 'none, since nothing was compared'}."
            )


def fail_if(text: str) -> Rule:
    """Read a rule: `[DECODER:]METRIC_diff OP NUMBER[@TASK]`, such as `agla:accuracy_diff<-0.01@pope_adversarial`.

    Raises:
        DataError: it is written in another way.
    """
    read = _RULE.fullmatch(text)
    try:
        bound = float(read["bound"]) if read else float("nan")
    except ValueError:
        bound = float("nan")
    if read is None or bound != bound:
        raise DataError(
            f"{text!r} is no rule: write [DECODER:]METRIC_diff OP NUMBER[@TASK] with OP <, <=, > or >=, such as "
            "accuracy_diff<-0.01 or chair_i_diff>0.02@chair."
        )
    decoder = (read["decoder"] or "").strip()
    return Rule(text.strip(), read["metric"], read["sign"], bound, read["task"] or "", decoder)


def _differences(rows: Sequence[Row]) -> list[Row]:
    """Return the differences between two runs, or those of one run from its reference."""
    references = {row["decoder"] for row in rows if row["role"] == "reference"}
    return [r for r in rows if r["baseline"] is not None and (r.get("run") or r["baseline"] in references)]


def _name(row: Row) -> str:
    return f"{row['decoder']} − {row['baseline']}"
