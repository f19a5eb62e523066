"""`lvlm-guard bench`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lvlm_guard.cli.bench_server import Wanted, bench_server, loads_of
from lvlm_guard.cli.console import out, print_json, quiet_libraries, say, usage
from lvlm_guard.cli.options import Device, Dtype, Json, Model, method_of
from lvlm_guard.progress import progress

BUSY = 0.5  # other work in cores beyond which the figures are not to be trusted


def bench(
    context: typer.Context,
    model: Model = "embedded",
    methods: Annotated[str, typer.Option(help="Methods, comma-separated; 'all' for every one.")] = "agla,focus,vote",
    executions: Annotated[str, typer.Option(help="Of auto, lazy, batched.")] = "auto,lazy,batched",
    batches: Annotated[str, typer.Option(help="Captions in one call.")] = "1,8",
    blocks: Annotated[int, typer.Option(min=1, help="Repetitions of each workload.")] = 16,
    shape: Annotated[
        str, typer.Option(help="A random model and matcher of real proportions instead: 1b (LLaVA-1.5's, 5 GB).")
    ] = "",
    peers: Annotated[
        bool, typer.Option("--peers", help="Measure mitigv's implementation of each method beside ours, if installed.")
    ] = False,
    images: Annotated[
        Path | None, typer.Option(help="Pictures for a model other than embedded; else drawn scenes.", metavar="FOLDER")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest caption of another model.")] = 64,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of PyTorch.")] = None,
    server: Annotated[str, typer.Option(help="Measure a running `lvlm-guard serve` instead.", metavar="URL")] = "",
    plain_server: Annotated[
        str, typer.Option(help="An ordinary vLLM with the same model, to compare --server with.", metavar="URL")
    ] = "",
    concurrency: Annotated[str, typer.Option(help="Requests in flight at --server.")] = "1,8,32",
    tokenizer: Annotated[
        str, typer.Option(help="Of the model at --server: a folder or hub id; else its plain name.")
    ] = "",
    records: Annotated[
        Path | None,
        typer.Option("--out", help="At --server: file of blocks as they come; a run goes on from it.", metavar="FILE"),
    ] = None,
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
    given = {name for name in context.params if getattr(context.get_parameter_source(name), "name", "") != "DEFAULT"}
    if server:
        others = {"executions", "batches", "threads", "device", "dtype", "images", "shape", "peers"}
        _refuse(given & others, "not for --server")
        guards = _listed(methods, None) if "methods" in given and methods != "all" else []
        asked = model if "model" in given else "", tuple(guards)
        bench_server(
            Wanted(
                server=server,
                plain_server=plain_server,
                model=asked[0],
                guards=asked[1],
                concurrency=loads_of(concurrency),
                blocks=blocks,
                max_new_tokens=max_new_tokens,
                tokenizer=tokenizer,
                out=records,
                json=json,
            )
        )
        return
    _refuse(given & {"plain_server", "concurrency", "tokenizer", "records"}, "only for --server")
    sizes = sizes_of(batches)
    chosen_executions = _listed(executions, ("auto", "lazy", "batched"))
    quiet_libraries()
    import torch

    from lvlm_guard.bench.measure import Arm, Bench, arms_of
    from lvlm_guard.bench.peers import peer_name, peers_of
    from lvlm_guard.bench.shapes import random_matcher, random_pair, shape_of
    from lvlm_guard.bench.workloads import folder_pictures, made_pictures, picture_workloads, world_workloads
    from lvlm_guard.methods import REGISTRY
    from lvlm_guard.pretrained import EMBEDDED, dtype_of, load_model, usable_device

    if threads is not None:
        torch.set_num_threads(threads)
    lacking = [name for name in REGISTRY.names() if REGISTRY.get(name).needs_statistics] if methods == "all" else []
    names = [n for n in REGISTRY.names() if n not in lacking] if methods == "all" else _listed(methods, None)
    if lacking:
        say(f"Left out, since they need statistics of the model: {', '.join(lacking)}.")
    chosen = [method_of(name, None) for name in names]
    busy = _load()
    if model == "embedded" and images is None and not shape:
        workloads = world_workloads(blocks, sizes)
    else:
        workloads = picture_workloads(folder_pictures(images) if images else made_pictures(), sizes, max_new_tokens)
    if shape:
        _refuse(given & {"model"}, "not for --shape")
        where = usable_device(device)
        model, (lvlm, processor) = shape, random_pair(shape_of(shape), dtype=dtype_of(EMBEDDED, dtype))
        matcher = random_matcher(shape_of(shape))
        lvlm.to(where)
        matcher.model.to(where)
        chosen = [replace(method, matcher=matcher) if hasattr(method, "matcher") else method for method in chosen]
    else:
        lvlm, processor = load_model(model, device=device, dtype=dtype)
    arms = arms_of(chosen, chosen_executions)  # type: ignore[arg-type]
    if peers:
        arms += [Arm(peer_name(name), peer=name) for name in peers_of(names)]
    unmeasured = 1
    say(f"Measuring {len(arms)} ways to answer on {len(workloads)} workloads, {blocks} blocks each. Ctrl-C stops.")
    with progress("blocks", len(workloads) * (blocks + unmeasured)) as tick:
        measured = Bench(lvlm, processor, model, blocks=blocks, warm=unmeasured, tick=tick)
        rows = measured.run(workloads, arms)
    for name, error in measured.raised.items():
        say(f"{name} raised {error}")
    if busy > BUSY:
        say(
            f"The machine was busy when this began (load {busy:.1f}): ratios hold better than times, but measure again."
        )
    if json:
        print_json("bench", rows, lvlm.device)
        return
    for workload in workloads:
        out().print(_table(rows, workload.task, workload.batch))
    out().print(
        "[dim]time: median over blocks of guarded / plain generate(), the mask counted; request: the processor too; "
        "forwards, tokens and masks are means a call; 95 % intervals in brackets.[/]"
    )


def _refuse(names: set[str], when: str) -> None:
    """Raise on options that another kind of measurement has."""
    if names:
        name = min(names).replace("_", "-") if "records" not in names else "out"
        raise usage(f"--{name} is {when}: leave it out.")


def _listed(text: str, known: tuple[str, ...] | None) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in names if known is not None and name not in known]
    if wrong or not names:
        raise usage(f"{text!r}: give one or more of {', '.join(known or ('the methods',))}, comma-separated.")
    return names


def sizes_of(text: str) -> list[int]:
    """Read "1,8" as batch sizes."""
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise usage(f"--batches {text}: give whole numbers of at least 1, such as 1,8.")
    return sizes


def _load() -> float:
    import os

    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _table(rows: list[dict[str, Any]], task: str, batch: int) -> Table:
    mine = [row for row in rows if (row["task"], row["batch"]) == (task, batch)]
    title = f"{task}s, {'one by one' if batch == 1 else f'{batch} at once'} (n = {mine[0]['n']})"
    table = Table(title=title, title_justify="left")
    for column in (
        "method",
        "run",
        "time",
        "a token",
        "request",
        "ms a call",
        "tokens/s",
        "local fwd",
        "tokens",
        "masks",
        "peak MiB",
    ):
        table.add_column(column, justify="left" if column in ("method", "run") else "right", no_wrap=column == "method")
    for method, execution in dict.fromkeys((row["method"], row["execution"]) for row in mine):
        found = {row["metric"]: row for row in mine if (row["method"], row["execution"]) == (method, execution)}
        table.add_row(
            method,
            execution,
            _ratio(found.get("time_ratio")) if execution != "peer" else "–",
            _mean(found.get("token_time_ratio")),
            _ratio(found.get("request_ratio")),
            f"{1000 * found['seconds_per_call']['value']:.1f}",
            f"{found['tokens_per_s']['value']:.0f}",
            *(_mean(found.get(name)) for name in ("local_forwards", "local_tokens", "masks")),
            f"{found['peak_memory_mib']['value']:.0f}",
        )
    return table


def _ratio(row: dict[str, Any] | None) -> str:
    if row is None:
        return "1"
    ends = "" if row["low"] is None else f" [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{row['value']:.2f}{ends}"


def _mean(row: dict[str, Any] | None) -> str:
    return "–" if row is None else f"{row['value']:.2f}"
