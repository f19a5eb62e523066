"""`lvlm-guard maskd`."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Annotated

import typer

from lvlm_guard.cli.console import print_json, quiet_libraries, say
from lvlm_guard.cli.options import Device, Json, Model


def maskd(
    model: Model = "embedded",
    matcher: Annotated[
        str | None, typer.Option(help="A registered matcher, a BLIP folder or hub id; default: the model's.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; there is no password.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one.")] = 8201,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with its own matcher and queue.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each worker.")] = None,
    objects: Annotated[
        str | None, typer.Option(help="List of what captions may name. [default: COCO]", metavar="FILE")
    ] = None,
    queue: Annotated[int, typer.Option(min=1, help="Requests that wait; more are answered 503.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Requests matched at once.")] = 16,
    deadline: Annotated[float, typer.Option(min=0.001, help="Seconds to an answer; later it is 503.")] = 10.0,
    max_body: Annotated[int, typer.Option(min=1, help="MiB of one request.")] = 32,
    max_held: Annotated[int, typer.Option(min=1, help="MiB of all requests in memory.")] = 256,
    max_pixels: Annotated[int, typer.Option(min=1, help="Most pixels of a picture.")] = 128_000_000,
    cache: Annotated[int, typer.Option(min=1, help="MiB of remembered answers.")] = 64,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16.")] = "float32",
    json: Json = False,
) -> None:
    """Serve masks for AGLA and scores for vote, from one matcher that several servers may share.

    POST /mask and /scores, GET /health and /metrics. --model says whose matcher: the embedded one's own, else
    BLIP-ITM large. With --json one object is printed when the service is ready.

    [bold]Example:[/bold] lvlm-guard maskd --model llava-hf/llava-1.5-7b-hf --port 8201
    """
    quiet_libraries()
    room, limits = import_module("lvlm_guard.serve.maskd.run"), import_module("lvlm_guard.serve.maskd.asks").Limits
    settings = room.Settings(
        matcher=matcher or ("embedded" if model == "embedded" else "blip-itm"),
        device=device,
        dtype=dtype,
        objects=objects,
        threads=threads,
        workers=workers,
        limits=limits(
            queue=queue,
            batch=batch,
            deadline=deadline,
            body=max_body << 20,
            held=max_held << 20,
            pixels=max_pixels,
            cache=cache << 20,
        ),
    )

    def ready(url: str, version: str) -> None:
        if json:
            print_json("maskd", [{"url": url, "matcher": version, "workers": workers, "pid": os.getpid()}])
        else:
            say(f"The matcher {version} answers at {url} (/mask, /scores, /health, /metrics). Ctrl-C stops it.")

    room.maskd(settings, host, port, ready)
