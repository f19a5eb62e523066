"""The table of answers, which asking, scoring and foreign files share: one row an answer. Needs pyarrow alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import pyarrow as pa

from lvlm_guard.evals.spec.items import Said

Role = Literal["reference", "plain", "control", "matcher", "method", "adapter"]

ROLES: tuple[Role, ...] = get_args(Role)
"""What a decoder stands for: greedy, plain sampling, a control of a method's gain, the matcher's own answer, a guard,
or an adapter that is asked plainly."""

CALIBRATED: tuple[Role, ...] = ("reference", "plain", "control")  # roles that answer a task's calibration items too
LIMITS = (32, 64, 128, 256, 512)  # token limits at which captions are scored beside their whole


@dataclass(frozen=True, kw_only=True)
class Answer(Said):
    """One row of the table: what was said, and by whom to what. What was not measured is None; what differs from run to
    run, seconds and memory, is in the table of costs."""

    task: str
    split: str  # "test"; "val" for a calibration item, which is never reported as a result
    item: str  # key of the item within its task
    picture: str  # the unit of the statistics
    decoder: str  # who answered, for people; no code parses it
    role: str  # one of `ROLES`
    baseline: str | None = None  # the decoder that it is a control or variant of, or is compared with
    seed: int = 0  # which of the decoder's runs


_TYPES = {
    "str": pa.string(),
    "int": pa.int32(),
    "float": pa.float32(),
    "bool": pa.bool_(),
    "tuple[int, ...]": pa.list_(pa.int32()),
}
_WHOSE = ("task", "split", "item", "picture", "decoder", "baseline", "role", "seed", "text")
_FIRST = (*_WHOSE, "score", "mass", "censored", "tokens", "ended", "cut_at")
_COSTLY = ("seconds", "peak_mib")


def _field(name: str, kind: str) -> pa.Field:
    maybe = kind.endswith(" | None") or (kind == "float" and name != "seconds")  # what is counted may not be known
    return pa.field(name, _TYPES[kind.removesuffix(" | None")], maybe)


_FIELDS = {f.name: _field(f.name, str(f.type)) for f in fields(Answer)}

SCHEMA = pa.schema([_FIELDS[name] for name in dict.fromkeys((*_FIRST, *_FIELDS)) if name not in _COSTLY])
"""Columns of `answers.parquet`; nothing in it differs from run to run."""

COSTS = pa.schema([_FIELDS[name] for name in ("task", "split", "item", "decoder", "seed", *_COSTLY)])
"""Columns of `costs.parquet`: what differs from run to run, in the order of the answers."""


def table_of(answers: Iterable[Answer | Mapping[str, Any]]) -> pa.Table:
    """Return answers as a table of `SCHEMA`."""
    rows = [vars(answer) if isinstance(answer, Answer) else answer for answer in answers]
    return pa.Table.from_pylist(rows, schema=SCHEMA)
