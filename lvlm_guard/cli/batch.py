"""`lvlm-guard batch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lvlm_guard.cli.console import print_json, quiet_libraries, say
from lvlm_guard.cli.options import Device, Dtype, Execution, Json, Knobs, Model, knob_value, method_of


def batch(
    data: Annotated[
        list[Path], typer.Argument(help="JSON lines, parquet, webdataset tars, or folders of them.", metavar="INPUT...")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the answers.", file_okay=False, metavar="DIR")],
    model: Model = "embedded",
    adapter: Annotated[
        str | None, typer.Option(help="A PEFT adapter to put over the model: a folder or a hub id.", metavar="DIR")
    ] = None,
    method: Annotated[str, typer.Option(help="A decoding method; `lvlm-guard methods` lists them.")] = "agla",
    knob: Knobs = None,
    prompt: Annotated[str, typer.Option(help="Asked where a row has no prompt.", metavar="TEXT")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    batch_size: Annotated[int, typer.Option("--batch", min=1, help="Rows in one call.")] = 16,
    shard_rows: Annotated[
        int, typer.Option(min=1, help="Rows in one file of answers, and what a crash costs at most.")
    ] = 256,
    engine: Annotated[Literal["process", "ray"], typer.Option(help="This process, or actors on Ray Data.")] = "process",
    workers: Annotated[int, typer.Option(min=1, help="Actors of --engine ray.")] = 1,
    share: Annotated[
        str | None,
        typer.Option(help="Which share this process does, 0/8 to 7/8; default: torchrun's.", metavar="I/N"),
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="Ask a server, whose plain name is --model, instead.", metavar="URL")
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Requests to --server at one time.")] = 32,
    execution: Execution = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Answer a whole data set, guarded, into parquet files with the proof of each answer.

    A row has a prompt and image or images: paths (from the file's own folder) or files' bytes. The same command goes on
    where it stopped, and no row is answered twice. What is wrong with a row is in its column error.

    [bold]Example:[/bold] lvlm-guard batch photos.jsonl --out answers --prompt "describe the image ." --method focus
    """
    quiet_libraries()
    from lvlm_guard.batch.plan import How, plan_of
    from lvlm_guard.batch.run import here, on_ray, run
    from lvlm_guard.ranks import Place

    method_of(method, knob)  # says what is wrong before anything is written
    pairs = [pair.partition("=")[::2] for pair in knob or ()]
    how = How(
        model=model,
        method=method,
        knobs={name.strip(): knob_value(method, name.strip(), text.strip()) for name, text in pairs},
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        batch=batch_size,
        adapter=adapter,
        dtype=dtype,
        execution=execution,
        server=server or "",
    )
    plan = plan_of(data, out, how, shard_rows)
    if engine == "ray":
        told = run(plan, out, lambda: on_ray(plan, out, workers, device, at_once), say)
    else:
        mine = Place.read(share)
        told = run(plan, out, lambda: here(plan, out, mine, device, at_once), say)
    if json:
        print_json("batch", [{**told, "out": str(out), "model": model, "method": method}])
    else:
        left = "" if told["finished"] else " The rest is other processes', or the next call's."
        done = f"{told['done']} of {told['rows']} rows are in {out}"
        say(f"{done}; of {told['now']} new ones {told['errors']} failed.{left}")
    if told["now"] and told["errors"] == told["now"]:
        raise typer.Exit(3)
