"""An answer as a strip of tokens; those the guard overruled are marked, and each tells its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lvlm_guard.report.html import Html, part
from lvlm_guard.report.tables import number

END = " [end]"  # how a token without text, mostly the end of the answer, is shown where it matters


@dataclass(frozen=True)
class TokenMark:
    """One token of an answer.

    Args:
        text: the token as it reads in the answer, with its leading space.
        log_prob: log-probability in nats under each branch, None where the branch did not run.
        divergence: Jensen-Shannon divergence between the branches, in nats.
        decided: True where one token was plausible, so that no other branch could change it.
        overruled: what the plain model would have said here, where the guard chose otherwise.
        claim: what the matcher was asked about this token, if anything.
    """

    text: str
    log_prob: Mapping[str, float | None] = field(default_factory=dict)
    divergence: float | None = None
    decided: bool = False
    overruled: str | None = None
    claim: str | None = None

    @property
    def kind(self) -> str:
        """How a strip shows it."""
        return "overruled" if self.overruled is not None else "decided" if self.decided else "weighed"

    def numbers(self) -> list[str]:
        """Return what is known of it, a line each."""
        lines = {
            "overruled": f"The plain model would have said “{(self.overruled or '').strip()}”.",
            "decided": "One token was plausible: no other view could change it.",
            "weighed": "Several tokens were plausible; the plain model's first choice stayed.",
        }
        told = [lines[self.kind]]
        for branch, log_prob in self.log_prob.items():
            p = "not run" if log_prob is None else f"p {math.exp(log_prob):.3f} (log {number(log_prob, 2)})"
            told.append(f"{branch}: {p}")
        if self.divergence is not None:
            told.append(f"divergence between views: {self.divergence:.3f} nats")
        return told + ([f"asked of the matcher: {self.claim}"] if self.claim else [])


def token_marks(
    trace: Mapping[str, Any], decode: Callable[[Sequence[int]], str], *, row: int = 0, prefix: Sequence[int] = ()
) -> list[TokenMark]:
    """Read one row of `GuardTrace.to_dict()`.

    Args:
        trace: the dictionary; its `steps` hold one list a row.
        decode: token ids to text, special tokens dropped. A token's text is what it adds to the text before
            it, so that spaces and characters of several tokens come out right.
        row: which output sequence.
        prefix: token ids before the first one, if the answer went on from a text.
    """
    said = list(prefix)
    marks = []
    for step in trace["steps"][row]:
        before, token, over = decode(said), step["token"], step.get("overruled")
        text, instead = (None if each is None else decode([*said, each]).removeprefix(before) for each in (token, over))
        said.append(token)
        if not text and over is None:
            continue
        claims = {int(claimed): claim for claimed, claim in (step.get("claims") or {}).items()}
        told = step.get("log_prob") or {}, step.get("divergence"), bool(step.get("decided"))
        marks.append(TokenMark(text or END, *told, None if over is None else instead or END, claims.get(token)))
    return marks


def token_strip(marks: Iterable[TokenMark]) -> Html:
    """Return the answer; a token shows its numbers when pointed at, tapped or reached by the keyboard."""
    return part("tokens", list(marks))


def legend() -> Html:
    """Return the key to a strip's marks."""
    return part("legend")
