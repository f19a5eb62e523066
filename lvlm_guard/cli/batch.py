"""`lvlm-guard batch`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from lvlm_guard.batch.how import How
from lvlm_guard.cli.console import print_json, quiet_libraries, say
from lvlm_guard.cli.options import Device, Json, Knobs, checked_knobs

_DATA = Argument(help="JSON lines, parquet, webdataset tars, or folders of them.", metavar="INPUT...")
_SHARE = Option(help="Which share this process does, 0/8 to 7/8; default: torchrun's.", metavar="I/N")


def batch(
    answers: partial[How],
    data: Annotated[list[Path], _DATA],
    out: Annotated[Path, Option(help="Folder of the answers.", file_okay=False, metavar="DIR")],
    knob: Knobs = None,
    shard_rows: Annotated[
        int, Option(min=1, help="Rows in one file of answers, and what a crash costs at most.")
    ] = 256,
    engine: Annotated[Literal["process", "ray"], Option(help="This process, or actors on Ray Data.")] = "process",
    workers: Annotated[int, Option(min=1, help="Actors of --engine ray.")] = 1,
    share: Annotated[str | None, _SHARE] = None,
    at_once: Annotated[int, Option(min=1, help="Requests to --server at one time.")] = 32,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Answer a whole data set, guarded, into parquet files with the proof of each answer.

    A row has a prompt and image or images: paths (from the file's own folder) or files' bytes. The same command goes on
    where it stopped, and no row is answered twice. What is wrong with a row is in its column error.

    [bold]Example:[/bold] lvlm-guard batch photos.jsonl --out answers --prompt "describe the image ." --method focus
    """
    quiet_libraries()
    from lvlm_guard.batch.plan import plan_of
    from lvlm_guard.batch.run import here, on_ray, run
    from lvlm_guard.ranks import Place

    how = answers(knobs=checked_knobs(answers.keywords["method"], knob))
    plan = plan_of(data, out, how, shard_rows)
    if engine == "ray":
        told = run(plan, out, lambda: on_ray(plan, out, workers, device, at_once), say)
    else:
        mine = Place.read(share)
        told = run(plan, out, lambda: here(plan, out, mine, device, at_once), say)
    if json:
        print_json("batch", [{**told, "out": str(out), "model": how.model, "method": how.method}])
    else:
        left = "" if told["finished"] else " The rest is other processes', or the next call's."
        done = f"{told['done']} of {told['rows']} rows are in {out}"
        say(f"{done}; of {told['now']} new ones {told['errors']} failed.{left}")
    if told["now"] and told["errors"] == told["now"]:
        raise typer.Exit(3)
