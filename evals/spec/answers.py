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
        *(pa.field(name, pa.string(), nullable=False) for name in ("task", "split", "item", "picture", "decoder")),
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
        *(pa.field(name, pa.float32()) for name in ("forwards", "local_forwards", "local_tokens", "masks")),
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
    """One row of the table; what is not below is as in `spec.items.Said`, with None for what was not measured.

    Args:
        split: "test"; "val" for a calibration item, which is never reported as a result.
        item: key of the item within its task.
        picture: the unit of the statistics.
        decoder: who answered, for people; no code parses it.
        baseline: the decoder that it is a control or variant of, or is compared with.
        role: one of `ROLES`.
        seed: which of the decoder's runs.
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
