"""What the commands that train a matcher share: their options, and how their results are shown."""

from __future__ import annotations

import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer
from rich.markup import escape
from rich.table import Table

from lvlm_guard.cli.console import environment, out, print_json, say, usage
from lvlm_guard.progress import progress

Data = Annotated[
    str, typer.Option(help="embedded, a .jsonl file, a folder, .tar shards, or hf:owner/name.", metavar="DATA")
]
Clip = Annotated[str, typer.Option(help="embedded, a folder or a hub id.", metavar="ID")]
Images = Annotated[Path | None, typer.Option(help="Where paths of a .jsonl file start. [default: its own folder]")]
OnBad = Annotated[Literal["raise", "skip"], typer.Option(help="Pictures that can't be read: stop, or skip and count.")]
Pictures = Annotated[int | None, typer.Option(min=4, help="To train on, the first ones. [default: all; embedded 1200]")]
Batch = Annotated[int | None, typer.Option(min=2, help="Of a step, in each process. [default: 64; embedded 32]")]
MeasureEvery = Annotated[int | None, typer.Option(min=1, help="Steps between measurements. [default: an epoch]")]
Patience = Annotated[int, typer.Option(min=0, help="Measurements without a better one that end training; 0: none.")]
SaveEvery = Annotated[int, typer.Option(min=1, help="Steps between saved states.")]
Precision = Annotated[Literal["auto", "bfloat16", "float32"], typer.Option(help="auto: bfloat16 where a GPU has it.")]
Seeds = Annotated[str, typer.Option("--seeds", "--seed", help="Of training, comma-separated: an adapter each.")]
TestPictures = Annotated[
    int | None, typer.Option(min=2, help="Test pictures of --compare. [default: all; embedded 400, 500]")
]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read pictures, where they don't fit in memory.")]
TrainDevice = Annotated[Literal["auto", "cpu"], typer.Option(help="auto: accelerate's choice.")]
StartOver = Annotated[bool, typer.Option("--start-over", help="Drop what an earlier run left in --out.")]


def needs_extra() -> None:
    """Raise `MissingExtraError` where peft or accelerate is not installed."""
    from lvlm_guard.errors import MissingExtraError

    try:
        for name in ("peft", "accelerate"):
            import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"Training needs peft and accelerate ({error}). Install them: pip install 'lvlm-guard[train]'."
        ) from error


def numbers(seeds: str) -> tuple[int, ...]:
    """Return the seeds of --seeds."""
    try:
        return tuple(int(part) for part in seeds.split(","))
    except ValueError:
        raise usage(f"--seeds {seeds!r}: give whole numbers, comma-separated, such as 0,1,2.") from None


def line() -> str:
    """Return the command line that this is."""
    return shlex.join(["lvlm-guard", *sys.argv[1:]])


def asked(
    folder: Path, seeds: str, compare: bool, device: str, workers: int, start_over: bool, pictures: int | None
) -> Any:
    """Return a `lvlm_guard.adapters.training.runs.Call`."""
    return import_module("lvlm_guard.adapters.training.runs").Call(
        out=folder,
        seeds=numbers(seeds),
        compare=compare,
        device=device,
        workers=workers,
        start_over=start_over,
        pictures=pictures,
        echo=say,
        progress=progress,
        line=line(),
        environment=environment(),
    )


def first_pictures(data: Any, most: int | None) -> Any:
    """Return a data set with the first training pictures alone; other parts stay whole."""
    if most is None:
        return data
    learnt = list(dict.fromkeys(row.image for row in data.rows if row.split in (None, "train")))
    gone = set(learnt[most:])
    return data.with_rows([row for row in data.rows if row.image not in gone]) if gone else data


class Length(NamedTuple):
    """How long a training is.

    Args:
        batch: rows of a step.
        epoch: steps of one pass over the training rows.
        steps: in all.
    """

    batch: int
    epoch: int
    steps: int


def length(data: Any, batch: int | None, epochs: int | None, steps: int | None, world: int | None) -> Length:
    """Return how long to train.

    Args:
        data: the data set.
        batch: what the user asked for, as are `epochs` and `steps`; None for the default.
        epochs: passes over the training rows, 10 by default.
        steps: instead of epochs.
        world: steps on the embedded world, where minutes count; None for other data.
    """
    size = batch or (64 if world is None else 32)
    epoch = max(1, len(data.parted()[0].rows) // size)
    usual = 10 * epoch if world is None else world
    return Length(size, epoch, steps or (epochs * epoch if epochs else usual))


def finish(call: Any, report: dict[str, Any], json: bool) -> None:
    """Print what a training found."""
    if not call.main:
        return
    if json:
        rest = {key: value for key, value in report.items() if key not in ("command", "version", "environment", "rows")}
        print_json(report["command"], report["rows"], **rest)
        return
    ours = report["method"]
    if report["rows"]:
        methods = [name for name in dict.fromkeys(row["method"] for row in report["rows"]) if f"{ours}-" not in name]
        found = {(row["method"], row["metric"]): row for row in report["rows"]}
        shown = Table("", *methods, box=None)
        for metric in dict.fromkeys(row["metric"] for row in report["rows"]):
            shown.add_row(metric, *(_cell(found[method, metric]) for method in methods))
        out().print(shown)
        told = import_module("lvlm_guard.adapters.evaluation.told")
        for line in told.verdicts(report["rows"], ours):
            out().print(escape(line), soft_wrap=True)
    for folder, kept in zip(report["adapters"], report["kept"], strict=True):
        note = "  (no epoch was better than the untuned CLIP, which is kept)" if kept["kept"] == -1 else ""
        out().print(f"adapter  {escape(folder)}{note}", soft_wrap=True)
    out().print(f"report   {escape(str(call.out / 'report.html'))}", soft_wrap=True)


def _cell(row: dict[str, Any]) -> str:
    if row["value"] is None:
        return ""
    return escape(f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")
