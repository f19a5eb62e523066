"""`lvlm-guard demo`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from lvlm_guard import __version__
from lvlm_guard.cli.console import print_object, quiet_libraries, say
from lvlm_guard.cli.eval_run import show
from lvlm_guard.cli.options import Json


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for demo.html, results.json and the answers.", file_okay=False)
    ] = Path("demo-out"),
    quick: Annotated[bool, typer.Option("--quick", help="A few pictures, one seed: shows that it works.")] = False,
    start_over: Annotated[bool, typer.Option("--start-over", help="Ask again what was answered already.")] = False,
    json: Json = False,
) -> None:
    """Score the decoders on the embedded world and write demo.html.

    Greedy, every control, the matcher alone, AGLA, vote and VCD answer POPE questions and write captions
    on held-out pictures: accuracy, accuracy at the matched yes ratio, AUROC, CHAIR and cost with 95 %
    intervals, and a verdict on each method. Stopped by Ctrl-C, the same command goes on where it was.

    [bold]Example:[/bold] lvlm-guard demo --out demo-out
    """
    quiet_libraries()
    room = import_module("lvlm_guard.evals.studies.demo")
    results, page = room.run(out, room.QUICK if quick else room.SETTINGS, echo=say, started_over=start_over)
    if json:
        values = [{"method": row["decoder"], **row} for row in results["rows"] if row["baseline"] is None]
        differences = [row for row in results["rows"] if row["baseline"] is not None]
        told = {**results, "rows": values, "differences": differences, "page": str(page)}
        print_object({"command": "demo", "version": __version__, **told})
        return
    show(results, page=page)
