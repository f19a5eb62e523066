"""`lvlm-guard bench --server`: what a guard costs at a running server, by vLLM's own benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from lvlm_guard.cli.console import FAILED, STOPPED, bullets, err, out, print_json, say, usage
from lvlm_guard.errors import GuardError
from lvlm_guard.progress import progress


@dataclass(frozen=True)
class Wanted:
    """What is to be measured; see the options of `lvlm-guard bench`."""

    server: str
    plain_server: str
    model: str
    guards: tuple[str, ...]
    concurrency: tuple[int, ...]
    blocks: int
    max_new_tokens: int
    tokenizer: str
    out: Path | None
    json: bool


def bench_server(wanted: Wanted) -> None:
    """Measure a server's names against each other, and print what came out of it, also after Ctrl-C."""
    room = import_module("lvlm_guard.bench.server")
    arms = room.arms_of(wanted.server, wanted.plain_server, wanted.model, wanted.guards)
    load = room.Load(_tokenizer(wanted.tokenizer or arms[0].name), tokens=wanted.max_new_tokens)
    names = ", ".join(f"{arm.name}{' (ordinary vLLM)' * (arm.server == 'plain')}" for arm in arms)
    say(f"Measuring {names} at {wanted.server}, {wanted.blocks} blocks. Ctrl-C stops.")
    records: list[dict[str, Any]] = []
    stopped: BaseException | None = None
    try:
        with progress("runs", len(arms) * len(wanted.concurrency) * (wanted.blocks + 1)) as tick:
            records.extend(room.measure(arms, load, wanted.concurrency, wanted.blocks, wanted.out, tick))
    except (KeyboardInterrupt, GuardError) as reason:
        if not records:
            raise
        stopped = reason
    whole = _whole(records, len(arms) * len(wanted.concurrency))
    rows = [{"model": arms[0].name, **row} for row in room.rows(whole)]
    why = None if stopped is None else str(stopped) or "Ctrl-C; these are the blocks that were done."
    if wanted.json:
        print_json("bench", rows, stopped=why)
    else:
        _print(rows)
    if stopped is not None:
        err().print(f"Stopped: {why}", style="yellow", markup=False)
        raise typer.Exit(STOPPED if isinstance(stopped, KeyboardInterrupt) else FAILED)


def loads_of(text: str) -> tuple[int, ...]:
    """Read "1,8,32" as numbers of requests in flight."""
    try:
        loads = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        loads = ()
    if not loads or min(loads) < 1:
        raise usage(f"--concurrency {text}: give whole numbers of at least 1, such as 1,8,32.")
    return loads


def _tokenizer(name: str) -> str:
    from lvlm_guard import embedded
    from lvlm_guard.pretrained import EMBEDDED

    return str(embedded.MODEL) if name == EMBEDDED else name


def _whole(records: Sequence[dict[str, Any]], of_a_block: int) -> list[dict[str, Any]]:
    """Leave out a block that was not finished."""
    counts: dict[int, int] = {}
    for one in records:
        counts[one["block"]] = counts.get(one["block"], 0) + 1
    return [one for one in records if counts[one["block"]] == of_a_block]


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    for load in dict.fromkeys(row["concurrency"] for row in rows):
        mine = [row for row in rows if row["concurrency"] == load]
        table = Table(title=f"{load} in flight (n = {mine[0]['n']} each)", title_justify="left")
        columns = ("arm", "tokens/s", "first token ms", "p95", "time / plain name", "time / ordinary vLLM")
        for column in columns:
            table.add_column(column, justify="left" if column == "arm" else "right")
        for server, method in dict.fromkeys((row["server"], row["method"]) for row in mine):
            arm = {
                (row["metric"], row.get("against")): row
                for row in mine
                if (row["server"], row["method"]) == (server, method)
            }
            shown = [method if server == "guarded" else "ordinary vLLM", _spread(arm.get(("tokens_per_s", None)), 1, 0)]
            shown += [_spread(arm.get((f"first_token_{name}_s", None)), 1000, 1) for name in ("median", "p95")]
            shown += [_spread(arm.get(("time_ratio", against)), 1, 2) for against in ("guarded", "plain")]
            table.add_row(*shown)
        out().print(table)
    bullets(
        ["Medians over blocks with 95 % intervals in brackets; time: of a block's requests over the same requests'."]
    )


def _spread(row: Mapping[str, Any] | None, times: float, digits: int) -> str:
    if row is None:
        return "–"
    ends = [row["low"], row["high"]]
    brackets = "" if None in ends else f" [{', '.join(f'{times * end:.{digits}f}' for end in ends)}]"
    return f"{times * row['value']:.{digits}f}{brackets}"
