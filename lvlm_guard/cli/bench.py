"""`lvlm-guard bench`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.table import Table
from typer import Option

from lvlm_guard.cli.console import (
    FAILED,
    STOPPED,
    bullets,
    environment,
    err,
    out,
    print_json,
    quiet_libraries,
    say,
    usage,
)
from lvlm_guard.cli.options import Device, Dtype, Json, Model, Way, method_of
from lvlm_guard.cli.settings import COMMAS, EMBEDDED
from lvlm_guard.errors import GuardError
from lvlm_guard.progress import progress

BUSY = 0.5  # other work in cores beyond which the figures are not to be trusted
ONLY_HERE = {"executions", "batches", "threads", "device", "dtype", "images", "shape", "peers"}
ONLY_THERE = {"plain_server", "concurrency", "tokenizer", "records"}
Row = Mapping[str, Any]


class Column(NamedTuple):
    """How a table shows a metric: its head, its unit and digits, with its interval or not, and what plain has."""

    head: str
    times: float = 1
    digits: int = 2
    ends: bool = False
    plain: str = "–"

    def shown(self, row: Row | None, plain: bool) -> str:
        if row is None:
            return self.plain if plain else "–"
        value, *ends = (
            f"{self.times * row[part]:.{self.digits}f}" for part in ("value", "low", "high") if row[part] is not None
        )
        return f"{value} [{', '.join(ends)}]" if ends and self.ends else value


HERE = {
    "time_ratio": Column("time", ends=True, plain="1"),
    "token_time_ratio": Column("a token"),
    "request_ratio": Column("request", ends=True, plain="1"),
    "seconds_per_call": Column("ms a call", 1000, 1),
    "tokens_per_s": Column("tokens/s", 1, 0),
    "local_forwards": Column("local fwd"),
    "local_tokens": Column("tokens"),
    "masks": Column("masks"),
    "matcher_share": Column("matcher %", 100, 0),
    "reading_share": Column("reading %", 100, 0),
    "peak_memory_mib": Column("peak MiB", 1, 0),
}
THERE = {
    "tokens_per_s": Column("tokens/s", 1, 0, ends=True),
    "first_token_median_s": Column("first token ms", 1000, 1, ends=True),
    "first_token_p95_s": Column("p95", 1000, 1, ends=True),
    "time_ratio to guarded": Column("time / plain name", ends=True),
    "time_ratio to plain": Column("time / ordinary vLLM", ends=True),
}


_METHODS = Option(help="Methods, comma-separated; 'all' for every one.")
_EXECUTIONS = Option(help="Of auto, lazy, batched.")
_SHAPE = Option(help="A random model and matcher of real proportions instead: 1b (LLaVA-1.5's, 5 GB).")
_PEERS = Option("--peers", help="Measure mitigv's implementation of each method beside ours, if installed.")
_IMAGES = Option(help="Pictures for a model other than embedded; else drawn scenes.", metavar="FOLDER")
_PLAIN = Option(help="An ordinary vLLM with the same model, to compare --server with.", metavar="URL")
_TOKENIZER = Option(help="Of the model at --server: a folder or hub id; else its plain name.")
_OUT = Option("--out", help="At --server: file of blocks as they come; a run goes on from it.", metavar="FILE")


def bench(
    context: typer.Context,
    model: Model = EMBEDDED,
    methods: Annotated[tuple[str, ...], COMMAS, _METHODS] = ("agla", "focus", "vote"),
    executions: Annotated[tuple[Way, ...], COMMAS, _EXECUTIONS] = ("auto", "lazy", "batched"),
    batches: Annotated[tuple[int, ...], COMMAS, Option(min=1, help="Captions in one call.")] = (1, 8),
    blocks: Annotated[int, Option(min=1, help="Repetitions of each workload.")] = 16,
    shape: Annotated[str, _SHAPE] = "",
    peers: Annotated[bool, _PEERS] = False,
    images: Annotated[Path | None, _IMAGES] = None,
    max_new_tokens: Annotated[int, Option(min=1, help="Longest caption of another model.")] = 64,
    threads: Annotated[int | None, Option(min=1, help="CPU threads of PyTorch.")] = None,
    server: Annotated[str, Option(help="Measure a running `lvlm-guard serve` instead.", metavar="URL")] = "",
    plain_server: Annotated[str, _PLAIN] = "",
    concurrency: Annotated[tuple[int, ...], COMMAS, Option(min=1, help="Requests in flight at --server.")] = (1, 8, 32),
    tokenizer: Annotated[str, _TOKENIZER] = "",
    records: Annotated[Path | None, _OUT] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Measure what the guard costs: guarded over plain generate(), interleaved in one run.

    Captions at each batch size, and yes/no questions. Every call sees a new picture, so that the mask's
    cost is always in it. Values are medians over blocks of calls with 95 % intervals. Leave the machine
    alone meanwhile. With --server it is vLLM's own benchmark of each of its names, with the proof that every
    answer was guarded; --model is the plain one there, a key goes into OPENAI_API_KEY.

    [bold]Example:[/bold] lvlm-guard bench --methods agla,vcd --blocks 8 --json
    """
    given = {
        param.name: param.opts[0]
        for param in context.command.params
        if getattr(context.get_parameter_source(param.name or ""), "name", "") != "DEFAULT"
    }
    others, when = (ONLY_HERE, "not for --server") if server else (ONLY_THERE, "only for --server")
    if shape and not server and not others & given.keys():
        others, when = {"model"}, "not for --shape"
    if wrong := [option for name, option in given.items() if name in others]:
        raise usage(f"{wrong[0]} is {when}: leave it out.")
    everything = methods == ("all",)
    if server:
        room = import_module("lvlm_guard.bench.server")
        plain, guards = model if "model" in given else "", methods if "methods" in given and not everything else ()
        served = room.arms_of(server, plain_server, plain, guards)
        words = tokenizer or served[0].name
        words = str(import_module("lvlm_guard.embedded").MODEL) if words == EMBEDDED else words
        load = room.Load(words, tokens=max_new_tokens)
        told = ", ".join(f"{arm.name}{' (ordinary vLLM)' * (arm.server == 'plain')}" for arm in served)
        say(f"Measuring {told} at {server}, {blocks} blocks. Ctrl-C stops.")
        _measure_there(room, served, load, tuple(dict.fromkeys(concurrency)), blocks, records, json)
        return
    quiet_libraries()
    import torch

    from lvlm_guard.bench import shapes, workloads
    from lvlm_guard.bench.measure import Arm, Bench, arms_of
    from lvlm_guard.bench.peers import peer_name, peers_of
    from lvlm_guard.methods import REGISTRY
    from lvlm_guard.pretrained import dtype_of, load_model, usable_device

    if threads is not None:
        torch.set_num_threads(threads)
    if everything:
        lacking = [name for name in REGISTRY.names() if REGISTRY.get(name).needs_statistics]
        methods = tuple(name for name in REGISTRY.names() if name not in lacking and not REGISTRY.get(name).parity)
        say(f"Left out, since they need statistics of the model: {', '.join(lacking)}.")
    chosen = [method_of(name, None) for name in methods]
    busy = environment()["load"] or 0.0
    if model == EMBEDDED and images is None and not shape:
        asked = workloads.world_workloads(blocks, batches)
    else:
        pictures = workloads.folder_pictures(images) if images else workloads.made_pictures()
        asked = workloads.picture_workloads(pictures, batches, max_new_tokens)
    if shape:
        where, sized = usable_device(device), shapes.shape_of(shape)
        model, (lvlm, processor) = shape, shapes.random_pair(sized, dtype=dtype_of(EMBEDDED, dtype))
        matcher = shapes.random_matcher(sized)
        lvlm.to(where)
        matcher.model.to(where)
        chosen = [m.tuned(matcher=matcher) if hasattr(m.assembling, "matcher") else m for m in chosen]
    else:
        lvlm, processor = load_model(model, device=device, dtype=dtype)
    arms = arms_of(chosen, executions)
    if peers:
        arms += [Arm(peer_name(name), peer=name) for name in peers_of(methods)]
    say(f"Measuring {len(arms)} ways to answer on {len(asked)} workloads, {blocks} blocks each. Ctrl-C stops.")
    with progress("blocks", len(asked) * (blocks + 1)) as tick:  # the first of each is not counted
        measured = Bench(lvlm, processor, model, blocks=blocks, tick=tick)
        rows = measured.run(asked, arms)
    for name, error in measured.raised.items():
        say(f"{name} raised {error}")
    if busy > BUSY:
        say(
            f"The machine was busy when this began (load {busy:.1f}): ratios hold better than times, but measure again."
        )
    if json:
        print_json("bench", rows, lvlm.device)
        return

    def title(row: Row) -> str:
        how = "one by one" if row["batch"] == 1 else f"{row['batch']} at once"
        return f"{row['task']}s, {how} (n = {row['n']})"

    _print(rows, title, {"method": itemgetter("method"), "run": itemgetter("execution")}, HERE)
    out().print(
        "[dim]time: median over blocks of guarded / plain generate(), the mask counted; request: the processor too; "
        "forwards, tokens and masks are means a call, of whose time the matcher and other branches' reading have their "
        "shares; 95 % intervals in brackets.[/]"
    )


def _measure_there(
    room: Any, arms: Sequence[Any], load: Any, loads: Sequence[int], blocks: int, kept: Path | None, json: bool
) -> None:
    """Measure a server's names against each other, and print what came out of it, also after Ctrl-C."""
    records: list[Row] = []
    stopped: BaseException | None = None
    try:
        with progress("runs", len(arms) * len(loads) * (blocks + 1)) as tick:
            records.extend(room.measure(arms, load, loads, blocks, kept, tick))
    except (KeyboardInterrupt, GuardError) as reason:
        if not records:
            raise
        stopped = reason
    done = Counter(one["block"] for one in records)
    whole = [one for one in records if done[one["block"]] == len(arms) * len(loads)]
    rows = [{"model": arms[0].name, **row} for row in room.rows(whole)]
    why = None if stopped is None else str(stopped) or "Ctrl-C; these are the blocks that were done."
    if json:
        print_json("bench", rows, stopped=why)
    else:
        names = {"arm": lambda row: row["method"] if row["server"] == "guarded" else "ordinary vLLM"}
        _print(rows, lambda row: f"{row['concurrency']} in flight (n = {row['n']} each)", names, THERE)
        told = "Medians over blocks with 95 % intervals in brackets"
        bullets([f"{told}; time: of a block's requests over the same requests'."])
    if stopped is not None:
        err().print(f"Stopped: {why}", style="yellow", markup=False)
        raise typer.Exit(STOPPED if isinstance(stopped, KeyboardInterrupt) else FAILED)


def _print(
    rows: Sequence[Row],
    title: Callable[[Row], str],
    names: Mapping[str, Callable[[Row], str]],
    columns: Mapping[str, Column],
) -> None:
    """Print a table of each workload or load: an arm a line, its names and its figures."""
    for mine in _grouped(rows, "task", "batch", "concurrency"):
        table = Table(title=title(mine[0]), title_justify="left")
        for head in names:
            table.add_column(head, no_wrap=head == "method")
        for column in columns.values():
            table.add_column(column.head, justify="right")
        for arm in _grouped(mine, "server", "method", "execution"):
            found = {row["metric"] + (f" to {row['against']}" if "against" in row else ""): row for row in arm}
            plain = arm[0].get("execution") == "plain"
            figures = (column.shown(found.get(metric), plain) for metric, column in columns.items())
            table.add_row(*(name(arm[0]) for name in names.values()), *figures)
        out().print(table)


def _grouped(rows: Sequence[Row], *keys: str) -> list[list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return list(groups.values())
