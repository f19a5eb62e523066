"""An answer as a strip of tokens; those the guard overruled are marked, and each tells its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lvlm_guard.report.html import Html, join, tag
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
        before = decode(said)

        def adds(token: int, before: str = before) -> str:
            return decode([*said, token]).removeprefix(before)

        text, over = adds(step["token"]), step.get("overruled")
        claims = {int(token): claim for token, claim in (step.get("claims") or {}).items()}
        said.append(step["token"])
        if not text and over is None:
            continue
        marks.append(
            TokenMark(
                text=text or END,
                log_prob=step.get("log_prob") or {},
                divergence=step.get("divergence"),
                decided=bool(step.get("decided")),
                overruled=None if over is None else decode([*said[:-1], over]).removeprefix(before) or END,
                claim=claims.get(step["token"]),
            )
        )
    return marks


def token_strip(marks: Iterable[TokenMark]) -> Html:
    """Return the answer; a token shows its numbers when pointed at, tapped or reached by the keyboard."""
    return tag("p", *(_token(mark) for mark in marks), class_="tokens")


def _token(mark: TokenMark) -> Html:
    kind = "overruled" if mark.overruled is not None else "decided" if mark.decided else "weighed"
    spoken = (
        tag("s", mark.overruled.strip() or repr(mark.overruled), class_="was") if mark.overruled is not None else None
    )
    return join(
        (
            " " if mark.text[:1].isspace() else "",
            tag(
                "span",
                mark.text.strip() or repr(mark.text)[1:-1],
                spoken,
                tag("span", _numbers(mark), class_="tip", role="note"),
                class_=f"token {kind}",
                tabindex=0,
            ),
        )
    )


def _numbers(mark: TokenMark) -> Html:
    lines: list[object] = []
    if mark.overruled is not None:
        lines.append(tag("b", f"The plain model would have said “{mark.overruled.strip()}”."))
    elif mark.decided:
        lines.append("One token was plausible: no other view could change it.")
    else:
        lines.append("Several tokens were plausible; the plain model's first choice stayed.")
    for branch, log_prob in mark.log_prob.items():
        lines.append(
            f"{branch}: not run"
            if log_prob is None
            else f"{branch}: p {math.exp(log_prob):.3f} (log {number(log_prob, 2)})"
        )
    if mark.divergence is not None:
        lines.append(f"divergence between views: {mark.divergence:.3f} nats")
    if mark.claim:
        lines.append(f"asked of the matcher: {mark.claim}")
    return join(tag("span", line) for line in lines)


def legend() -> Html:
    """Return the key to a strip's marks."""
    return tag(
        "p",
        tag("span", "word", tag("s", "other", class_="was"), class_="token overruled"),
        " the guard chose it over the struck one; ",
        tag("span", "word", class_="token weighed"),
        " weighed, and the plain choice stayed; ",
        tag("span", "word", class_="token decided"),
        " nothing else was plausible. Point at a word for its numbers.",
        class_="legend",
    )
