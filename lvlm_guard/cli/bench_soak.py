"""`lvlm-guard bench --server URL --soak SECONDS`: mixed traffic for a long time, every answer checked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from lvlm_guard.cli.bench_server import workloads_of
from lvlm_guard.cli.console import FAILED, STOPPED, bullets, err, out, print_json, say
from lvlm_guard.progress import progress

POOL = 150  # questions that are asked again and again


def bench_soak(
    server: str,
    model: str,
    guards: tuple[str, ...],
    seconds: int,
    at_once: int,
    pid: int | None,
    images: Path | None,
    max_new_tokens: int,
    json: bool,
) -> None:
    """Ask a server for a long time, and print what was seen, also after Ctrl-C. Exits with 1 where it was not sound.

    Args:
        server: its URL.
        model: plain name; "": the first.
        guards: to ask for; (): all.
        seconds: how long.
        at_once: requests in flight.
        pid: of `lvlm-guard serve` on this machine, whose memory is watched; None: it is not.
        images: folder of pictures; None: drawn scenes.
        max_new_tokens: longest caption of another model than the embedded one.
        json: print one object.
    """
    room = import_module("lvlm_guard.serve.measure.soak")
    watched = None if pid is None else import_module("lvlm_guard.serve.measure.processes").Processes(pid)
    names = asyncio.run(_names(server))
    arms = import_module("lvlm_guard.serve.measure.bench").arms_of(names, model, guards)
    cases = _cases(arms, images, max_new_tokens)
    say(f"Asking {', '.join(arm.name for arm in arms)} at {server} for {seconds} s, {at_once} in flight. Ctrl-C stops.")
    soaks: list[Any] = []

    async def soak(tick: Any) -> None:
        async with import_module("lvlm_guard.serve.measure.endpoint").Endpoint(server) as endpoint:
            soaks.append(room.Soak(endpoint, cases, at_once=at_once, processes=watched, tick=tick))
            await soaks[0].run(seconds)

    stopped = False
    try:
        with progress("seconds", seconds) as tick:
            asyncio.run(soak(tick))
    except KeyboardInterrupt:
        if not soaks:
            raise
        stopped = True
    found = soaks[0].found
    rows = [{"model": arms[0].name, "task": "soak", **row} for row in found.rows()]
    if json:
        print_json("bench", rows, said=found.said, sound=found.sound, stopped=stopped)
    else:
        _print(rows)
        bullets(found.said)
    if stopped:
        raise typer.Exit(STOPPED)
    if not found.sound:
        err().print("The server is not sound: see above.", style="bold red")
        raise typer.Exit(FAILED)


async def _names(server: str) -> dict[str, str | None]:
    async with import_module("lvlm_guard.serve.measure.endpoint").Endpoint(server) as endpoint:
        names: dict[str, str | None] = await endpoint.names()
        return names


def _cases(arms: Sequence[Any], images: Path | None, max_new_tokens: int) -> list[Any]:
    from lvlm_guard.pretrained import EMBEDDED

    workloads = workloads_of(arms[0].name, images, max_new_tokens)
    answer = None
    if arms[0].name == EMBEDDED and images is None:
        from lvlm_guard.embedded.catalog import CLASSES

        answer = import_module("lvlm_guard.serve.measure.reference").Reference(CLASSES).answer
    with progress("questions", POOL) as tick:
        cases: list[Any] = import_module("lvlm_guard.serve.measure.pool").pool(workloads, arms, POOL, answer, tick)
    return cases


def _print(rows: Sequence[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(title="soak", title_justify="left")
    for column in ("what", "of", "value"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for row in rows:
        of = next((str(row[key]) for key in ("method", "status", "process", "when") if key in row), "")
        value = row["value"]
        table.add_row(row["metric"], of, f"{value:.2f}" if isinstance(value, float) else str(value))
    out().print(table)
