"""`lvlm-guard play`."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer

from lvlm_guard.cli.console import print_json, quiet_libraries, say, usage
from lvlm_guard.cli.options import Device, Dtype, Json, Model, Port

WHY_NOT_SHARED = (
    "--share is refused: it would send every picture and question through servers of another company, to a page "
    "without a password that anyone who has the address can open. To show it to someone: "
    "ssh -L 7860:127.0.0.1:7860 THIS_MACHINE, or --host behind a proxy of yours that asks for a password."
)


def play(
    model: Model = "embedded",
    server: Annotated[
        str | None,
        typer.Option(
            help="Ask a running `lvlm-guard serve` instead of a model here.", metavar="URL", show_default=False
        ),
    ] = None,
    matcher: Annotated[
        str | None, typer.Option(help="Who draws maps and verdicts; default: the model's.", metavar="NAME")
    ] = None,
    objects: Annotated[
        str | None,
        typer.Option(help="List of what is verified and voted on; default: the model's, else COCO's.", metavar="FILE"),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; there is no password.")] = "127.0.0.1",
    port: Port = 7860,
    share: Annotated[bool, typer.Option("--share", help="Refused, with the reason.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Open a page in the browser that compares methods on a picture of yours.

    Answers side by side as they are written, with overruled tokens, the relevance map, a verdict on each named object,
    cost, knobs, and the same as a Python script. Several people may use it at once: they wait in line. Pictures stay in
    the browser; nothing is kept, and nothing is sent elsewhere. Needs the extra: pip install 'lvlm-guard\\[play]'.

    [bold]Example:[/bold] lvlm-guard play --model llava-hf/llava-1.5-7b-hf
    """
    if share:
        raise usage(WHY_NOT_SHARED)
    if server is not None and model != "embedded":
        raise usage("--model is a model in this process and --server one elsewhere: give one of them.")
    quiet_libraries()

    def backend() -> Any:
        if server is not None:
            return import_module("lvlm_guard.play.remote").Remote(server, matcher=matcher, objects=objects)
        return import_module("lvlm_guard.play.local").Local(
            model, matcher=matcher, objects=objects, device=device, dtype=dtype
        )

    def ready(url: str) -> None:
        if json:
            print_json("play", [{"url": url, "model": None if server else model, "server": server}])
        else:
            say(f"The playground is at {url}. Ctrl-C stops it.")

    import_module("lvlm_guard.play.app").run(backend, host, port, ready)
