"""`lvlm-guard demo`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from lvlm_guard.cli.console import out as console
from lvlm_guard.cli.console import print_object, quiet_libraries, say
from lvlm_guard.cli.eval_run import show
from lvlm_guard.cli.options import Json


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for demo.html, run.json, samples.jsonl and the answers.", file_okay=False)
    ] = Path("demo-out"),
    quick: Annotated[bool, typer.Option("--quick", help="A few pictures, one seed: shows that it works.")] = False,
    start_over: Annotated[bool, typer.Option("--start-over", help="Ask again what was answered already.")] = False,
    json: Json = False,
) -> None:
    """Score the decoders on the embedded world and write demo.html.

    Greedy, sampling, APC, VCD, AGLA with its controls and vote answer POPE questions and write captions
    on held-out pictures, as in lvlm-guard eval run; the tables have their scores with 95 % intervals.
    Stopped by Ctrl-C, the same command goes on where it was.

    [bold]Example:[/bold] lvlm-guard demo --out demo-out
    """
    quiet_libraries()
    room = import_module("lvlm_guard.evals.studies.demo")
    done = room.run(out, room.QUICK if quick else room.SETTINGS, echo=say, started_over=start_over)
    if json:
        print_object(done.saved.run)
        return
    shown = console()
    show(done.saved, shown)
    shown.print(f"page  {escape(str(done.page))}")
