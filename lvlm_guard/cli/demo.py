"""`lvlm-guard demo`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from lvlm_guard.cli.console import out as console
from lvlm_guard.cli.console import print_object, quiet_libraries, say
from lvlm_guard.cli.options import Json


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for demo.html, the answers and results.json.", file_okay=False)
    ] = Path("demo-out"),
    quick: Annotated[bool, typer.Option("--quick", help="A few pictures, one seed: shows that it works.")] = False,
    json: Json = False,
) -> None:
    """Score the decoders on the embedded world and write demo.html.

    Greedy, sampling, APC, VCD, AGLA with its controls and vote answer POPE questions and write captions
    on held-out pictures; one table has their scores with 95 % intervals. Stopped by Ctrl-C, the same
    command goes on where it was.

    [bold]Example:[/bold] lvlm-guard demo --out demo-out
    """
    quiet_libraries()
    results = import_module("lvlm_guard.evals.demo").run(out, quick=quick, echo=say)
    if json:
        print_object(results.to_dict())
        return
    shown = console()
    shown.print(results.table(shown.width))
    for remark in results.remarks():
        shown.print(escape(remark))
    shown.print(f"page  {escape(str(results.page))}")
