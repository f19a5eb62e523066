"""The table of answers, which asking, scoring and foreign files share: one row an answer. Needs pyarrow alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import pyarrow as pa

Role = Literal["reference", "plain", "control", "matcher", "method", "adapter"]

ROLES: tuple[Role, ...] = get_args(Role)
"""What a decoder stands for: greedy, plain sampling, a control of a method's gain, the matcher's own answer, a guard,
or an adapter that is asked plainly."""

CALIBRATED: tuple[Role, ...] = ("reference", "plain", "control")  # roles that answer a task's calibration items too
LIMITS = (32, 64, 128, 256, 512)  # token limits at which captions are scored beside their whole


@dataclass(frozen=True)
class Answer:
    """One row of the table; what says nothing here is as in `spec.items.Said`, with None for what was not measured."""

    task: str
    split: str  # "test"; "val" for a calibration item, which is never reported as a result
    item: str  # key of the item within its task
    picture: str  # the unit of the statistics
    decoder: str  # who answered, for people; no code parses it
    role: str  # one of `ROLES`
    text: str
    baseline: str | None = None  # the decoder that it is a control or variant of, or is compared with
    seed: int = 0  # which of the decoder's runs
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
        return {name: getattr(self, name) for name in SCHEMA.names}


_TYPES = {
    "str": pa.string(),
    "int": pa.int32(),
    "float": pa.float32(),
    "bool": pa.bool_(),
    "tuple[int, ...]": pa.list_(pa.int32()),
}
_OF = {f.name: (_TYPES[str(f.type).removesuffix(" | None")], str(f.type).endswith("None")) for f in fields(Answer)}
_FIRST = ("task", "split", "item", "picture", "decoder", "baseline", "role", "seed", "text")

SCHEMA = pa.schema([pa.field(name, *_OF[name]) for name in dict.fromkeys((*_FIRST, *_OF))])
"""Columns of `answers.parquet`; nothing in it differs from run to run."""

COSTS = pa.schema(
    [
        *(SCHEMA.field(name) for name in ("task", "split", "item", "decoder", "seed")),
        pa.field("seconds", pa.float32(), nullable=False),
        pa.field("peak_mib", pa.float32()),
    ]
)
"""Columns of `costs.parquet`: what differs from run to run, in the order of the answers."""


def table_of(answers: Iterable[Answer | Mapping[str, Any]]) -> pa.Table:
    """Return answers as a table of `SCHEMA`."""
    rows = [answer.to_dict() if isinstance(answer, Answer) else dict(answer) for answer in answers]
    return pa.Table.from_pylist(rows, schema=SCHEMA)
