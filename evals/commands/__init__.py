"""`lvlm-guard eval`, whose commands are registered as `eval.NAME`, and `lvlm-guard demo`.

`asking` has those that ask a model, `answered` those for answers that are there, `shown` how all show what they found.
What only running a command needs is imported by it, so that lists and `--help` are quick.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lvlm_guard.cli.app import group
from lvlm_guard.cli.console import quiet_libraries, say
from lvlm_guard.cli.options import Json

evaluation = group(
    "Measure what a method does to hallucination, with intervals, controls and cost.\n\n"
    "[bold]Example:[/bold] lvlm-guard eval run --quick"
)


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
    from lvlm_guard.evals.commands.shown import tell, told
    from lvlm_guard.evals.studies.demo import QUICK, SETTINGS, run

    results, page = run(out, QUICK if quick else SETTINGS, echo=say, started_over=start_over)
    values = [{"method": row["decoder"], **row} for row in results["rows"] if row["baseline"] is None]
    differences = [row for row in results["rows"] if row["baseline"] is not None]
    found = {**results, "rows": values, "differences": differences, "page": str(page)}
    tell("demo", json, found, told(results), page=page)
