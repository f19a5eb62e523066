"""`lvlm-guard bench --server`: what a guard costs at a running server."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from lvlm_guard.cli.console import FAILED, STOPPED, bullets, err, out, print_json, say, usage
from lvlm_guard.errors import GuardError
from lvlm_guard.progress import progress

SCENES = 32  # blocks whose scenes are drawn; later ones see them again, with other pixels stamped


@dataclass(frozen=True)
class Wanted:
    """What is to be measured; see the options of `lvlm-guard bench`."""

    server: str
    plain_server: str
    model: str
    guards: tuple[str, ...]
    concurrency: tuple[int, ...]
    blocks: int
    images: Path | None
    max_new_tokens: int
    warm: bool
    out: Path | None
    json: bool


def bench_server(wanted: Wanted) -> None:
    """Measure a server's names against each other, and print what came out of it, also after Ctrl-C."""
    room = import_module("lvlm_guard.serve.measure.bench")
    records_of = import_module("lvlm_guard.serve.measure.records").Records
    about = asyncio.run(_about(wanted))
    arms = room.arms_of(about.names, wanted.model, wanted.guards)
    if wanted.plain_server:
        arms.append(import_module("lvlm_guard.serve.measure.asking").Arm(about.ordinary, None, "plain"))
    settings = {
        # not the addresses: a server that was started again is the same one
        "vllm": about.versions,
        "arms": [f"{arm.name} ({arm.server})" for arm in arms],
        "concurrency": wanted.concurrency,
        "warm": wanted.warm,
        "images": None if wanted.images is None else str(wanted.images),
        "max_new_tokens": wanted.max_new_tokens,
    }
    records = records_of(wanted.out, settings)
    workloads = workloads_of(arms[0].name, wanted.images, wanted.max_new_tokens)
    cells = import_module("lvlm_guard.serve.measure.asking").cells(workloads, wanted.concurrency)
    say(f"Measuring {', '.join(arm.shown for arm in arms)} at {wanted.server}, {wanted.blocks} blocks. Ctrl-C stops.")
    stopped: BaseException | None = None
    try:
        with progress("blocks", len(cells) * (wanted.blocks + 1)) as tick:
            asyncio.run(_measured(wanted, arms, cells, records, tick))
    except (KeyboardInterrupt, GuardError) as reason:
        if not records.all:
            raise
        stopped = reason
    twin = room.is_twin(about.names)
    rows = [{"model": arms[0].name, **row} for row in room.rows(records.all, twin)]
    if wanted.json:
        print_json("bench", rows, server=about.shown(wanted, twin), stopped=None if stopped is None else _why(stopped))
    else:
        _print(rows, twin, bool(wanted.plain_server))
    if stopped is not None:
        err().print(f"Stopped: {_why(stopped)}", style="yellow", markup=False)
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


@dataclass(frozen=True)
class _About:
    names: Mapping[str, str | None]
    ordinary: str
    versions: Mapping[str, str | None]

    def shown(self, wanted: Wanted, twin: bool) -> dict[str, Any]:
        return {"names": dict(self.names), "twin": twin, "vllm": dict(self.versions), "warm": wanted.warm}


async def _about(wanted: Wanted) -> _About:
    endpoint = import_module("lvlm_guard.serve.measure.endpoint").Endpoint
    async with endpoint(wanted.server) as server:
        names, versions = await server.names(), {"guarded": await server.version()}
    ordinary = ""
    if wanted.plain_server:
        async with endpoint(wanted.plain_server, guarded=False) as server:
            listed, versions["plain"] = await server.names(), await server.version()
        ordinary = wanted.model if wanted.model in listed else next(iter(listed))
    return _About(names, ordinary, versions)


def workloads_of(name: str, images: Path | None, max_new_tokens: int) -> Sequence[Any]:
    """Return captions and questions for a model: the embedded world's for the embedded one, else of pictures.

    Raises:
        ImageError: there is no picture in the folder.
    """
    from lvlm_guard.bench.workloads import folder_pictures, made_pictures, picture_workloads, world_workloads
    from lvlm_guard.pretrained import EMBEDDED

    if name == EMBEDDED and images is None:
        return world_workloads(SCENES, (1,))
    return picture_workloads(folder_pictures(images) if images else made_pictures(), (1,), max_new_tokens)


async def _measured(wanted: Wanted, arms: Sequence[Any], cells: Sequence[Any], records: Any, tick: Any) -> None:
    endpoint = import_module("lvlm_guard.serve.measure.endpoint").Endpoint
    bench = import_module("lvlm_guard.serve.measure.bench").ServerBench
    async with (
        endpoint(wanted.server) as guarded,
        endpoint(wanted.plain_server or wanted.server, guarded=False) as plain,
    ):
        servers = {"guarded": guarded, "plain": plain}
        run: Coroutine[Any, Any, None] = bench(
            servers, arms, cells, blocks=wanted.blocks, warm=wanted.warm, tick=tick
        ).run(records)
        await run


def _print(rows: Sequence[Mapping[str, Any]], twin: bool, ordinary: bool) -> None:
    for task, load in dict.fromkeys((row["task"], row["concurrency"]) for row in rows):
        mine = [row for row in rows if (row["task"], row["concurrency"]) == (task, load)]
        out().print(_table(mine, f"{task}s, {load} in flight (n = {mine[0]['n']} each)", ordinary))
    notes = [
        "Medians over blocks with 95 % intervals in brackets; time: seconds over those of the plain name, for the same "
        "requests; allowed: what the cost model allows it, from seconds of this run.",
    ]
    if twin and not ordinary:
        notes.append(
            "This server has a twin engine, where plain requests pay for the second branch too: --plain-server URL "
            "compares with an ordinary vLLM."
        )
    bullets(notes)


def _table(rows: Sequence[Mapping[str, Any]], title: str, ordinary: bool) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("arm", "tokens/s", "first token ms", "p95", "matcher ms", "time / plain", "allowed", ""):
        table.add_column(column, justify="left" if column in ("arm", "") else "right", no_wrap=column == "arm")
    if ordinary:
        for column in ("time / plain server", "allowed", ""):
            table.add_column(column, justify="right" if column else "left")
    for server, method in dict.fromkeys((row["server"], row["method"]) for row in rows):
        mine = [row for row in rows if (row["server"], row["method"]) == (server, method)]
        speed = {row["metric"]: row for row in mine if "against" not in row}
        shown = [method if server == "guarded" else "plain server", _spread(speed["tokens_per_s"], 1, 0)]
        shown += [_spread(speed[f"first_token_{name}_s"], 1000, 1) for name in ("median", "p95")]
        shown.append(_spread(speed.get("matcher_wait_s"), 1000, 1))
        for against in ("guarded", "plain") if ordinary else ("guarded",):
            ratios = {row["metric"]: row for row in mine if row.get("against") == against}
            ratio = ratios.get("time_ratio", {})
            allowed = f"{ratio['bound']:.2f}" if "bound" in ratio else "–"
            shown += [_spread(ratio or None, 1, 2), allowed, ratio.get("verdict", "")]
        table.add_row(*shown)
    return table


def _spread(row: Mapping[str, Any] | None, times: float, digits: int) -> str:
    if row is None:
        return "–"
    ends = [row["low"], row["high"]]
    brackets = "" if None in ends else f" [{', '.join(f'{times * end:.{digits}f}' for end in ends)}]"
    return f"{times * row['value']:.{digits}f}{brackets}"


def _why(stopped: BaseException) -> str:
    return "Ctrl-C; these are the blocks that were done." if isinstance(stopped, KeyboardInterrupt) else str(stopped)
