"""The table of answers, which asking, scoring and foreign files share: one row an answer. Needs pyarrow alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pyarrow as pa

Role = Literal["reference", "plain", "control", "matcher", "method", "adapter"]

ROLES: tuple[Role, ...] = get_args(Role)
"""What a decoder stands for: greedy, plain sampling, a control of a method's gain, the matcher's own answer, a guard,
or an adapter that is asked plainly."""

CALIBRATED: tuple[Role, ...] = ("reference", "plain", "control")
"""Roles that answer a task's calibration items too."""

LIMITS = (32, 64, 128, 256, 512)
"""Token limits at which captions are scored beside their whole."""

SCHEMA = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("item", pa.string(), nullable=False),
        pa.field("picture", pa.string(), nullable=False),
        pa.field("decoder", pa.string(), nullable=False),
        pa.field("baseline", pa.string()),
        pa.field("role", pa.string(), nullable=False),
        pa.field("seed", pa.int32(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("score", pa.float32()),
        pa.field("mass", pa.float32()),
        pa.field("censored", pa.bool_(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("ended", pa.bool_(), nullable=False),
        pa.field("cut_at", pa.list_(pa.int32())),
        pa.field("forwards", pa.float32()),
        pa.field("local_forwards", pa.float32()),
        pa.field("local_tokens", pa.float32()),
        pa.field("masks", pa.float32()),
        pa.field("failed", pa.string()),
        pa.field("proof", pa.string()),
    ]
)
"""Columns of `answers.parquet`; nothing in it differs from run to run."""

COSTS = pa.schema(
    [
        *(SCHEMA.field(name) for name in ("task", "split", "item", "decoder", "seed")),
        pa.field("seconds", pa.float32(), nullable=False),
        pa.field("peak_mib", pa.float32()),
    ]
)
"""Columns of `costs.parquet`: what differs from run to run, in the order of the answers."""


@dataclass(frozen=True)
class Answer:
    """One row of the table.

    Args:
        task: its name.
        split: "test"; "val" for a calibration item, which is never reported as a result.
        item: key of the item within its task.
        picture: the unit of the statistics.
        decoder: who answered, for people; no code parses it.
        baseline: the decoder that it is a control or variant of, or is compared with.
        role: one of `ROLES`.
        seed: which of the decoder's runs.
        text: the answer.
        score: of a yes/no question: log-odds of yes at the first answer token, nats; None: not had.
        mass: share of the probability there that is on yes or no.
        censored: whether a server told the likeliest tokens alone, yes or no not among them.
        tokens: of the answer.
        ended: whether it ended by itself; False: it was cut at the token limit.
        cut_at: characters of the text after its first `LIMITS` tokens; None: no caption, or not known.
        forwards, local_forwards, local_tokens, masks: see `spec.items.Said`; None: not measured, as at a server.
        failed: why there is no answer; None: there is one.
        proof: what a server said of its guard, JSON.
    """

    task: str
    split: str
    item: str
    picture: str
    decoder: str
    role: str
    text: str
    baseline: str | None = None
    seed: int = 0
    score: float | None = None
    mass: float | None = None
    censored: bool = False
    tokens: int = 0
    ended: bool = True
    cut_at: tuple[int, ...] | None = None
    forwards: float | None = 0.0
    local_forwards: float | None = 0.0
    local_tokens: float | None = 0.0
    masks: float | None = 0.0
    failed: str | None = None
    proof: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain data, in the table's order."""
        return {name: getattr(self, name) for name in SCHEMA.names}


def table_of(answers: Iterable[Answer | Mapping[str, Any]]) -> pa.Table:
    """Return answers as a table of `SCHEMA`."""
    rows = [answer.to_dict() if isinstance(answer, Answer) else dict(answer) for answer in answers]
    return pa.Table.from_pylist(rows, schema=SCHEMA)
