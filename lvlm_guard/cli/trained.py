"""What the commands that train a matcher share: their options, and how their results are shown."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer
from rich.markup import escape
from rich.table import Table

from lvlm_guard.cli.console import environment, out, print_json, say, usage
from lvlm_guard.cli.options import Json
from lvlm_guard.progress import progress

WORLD = "embedded"


def _configured(context: typer.Context, path: Path | None) -> Path | None:
    """Take a file's values for options that the command line does not give."""
    if path is None:
        return None
    import yaml

    known = {name.lstrip("-"): option.name for option in context.command.params for name in option.opts}
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(given, dict):
            raise ValueError("it holds no options, `steps: 500`")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise usage(f"--config {path} can't be read: {error}.") from None
    for name in given:
        if name not in known:
            raise usage(f"--config {path}: there is no option {name!r}. Options: {', '.join(known)}.")
    context.default_map = {**(context.default_map or {}), **{known[name]: value for name, value in given.items()}}
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML file of options, by their long names.",
        is_eager=True,
        callback=_configured,
        metavar="FILE",
    ),
]


def shared(
    data: Annotated[
        str, typer.Option(help="embedded, a .jsonl file, a folder, .tar shards, or hf:owner/name.", metavar="DATA")
    ] = "embedded",
    clip: Annotated[str, typer.Option(help="embedded, a folder or a hub id.", metavar="ID")] = "embedded",
    images: Annotated[
        Path | None, typer.Option(help="Where paths of a .jsonl file start. [default: its own folder]")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="Of a data set: captions=sentences. Repeatable.", metavar="KEY=COLUMN")
    ] = None,
    on_bad: Annotated[
        Literal["raise", "skip"], typer.Option(help="Pictures that can't be read: stop, or skip and count.")
    ] = "raise",
    pictures: Annotated[
        int | None, typer.Option(min=4, help="To train on, the first ones. [default: all; embedded 1200]")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=2, help="Pairs, or pictures of a group. [default: 64; embedded 32]")
    ] = None,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches of one step, over all processes.")] = 1,
    measure_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between measurements. [default: an epoch]")
    ] = None,
    patience: Annotated[
        int, typer.Option(min=0, help="Measurements without a better one that end training; 0: none.")
    ] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between saved states.")] = 50,
    precision: Annotated[
        Literal["auto", "bfloat16", "float32"], typer.Option(help="auto: bfloat16 where a GPU has it.")
    ] = "auto",
    seeds: Annotated[
        str, typer.Option("--seeds", "--seed", help="Of training, comma-separated: an adapter each.")
    ] = "0",
    test_pictures: Annotated[
        int | None, typer.Option(min=2, help="Test pictures of --compare. [default: all; embedded 400, 500]")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that read pictures, where they don't fit in memory.")
    ] = 0,
    report_to: Annotated[str, typer.Option(help="Trackers, comma-separated: tensorboard, wandb, mlflow, ...")] = "none",
    config: Config = None,
    device: Annotated[Literal["auto", "cpu"], typer.Option(help="auto: accelerate's choice.")] = "auto",
    start_over: Annotated[bool, typer.Option("--start-over", help="Drop what an earlier run left in --out.")] = False,
    json: Json = False,
) -> None:
    """Options of every training of a matcher (`with_options_of`)."""


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


def asked(options: Mapping[str, Any], folder: Path, compare: bool, usual: int) -> Any:
    """Return a `lvlm_guard.adapters.training.recipe.Call`; `usual` are the test pictures of the embedded world."""
    return import_module("lvlm_guard.adapters.training.recipe").Call(
        out=folder,
        seeds=numbers(options["seeds"]),
        compare=compare,
        pictures=options["test_pictures"] or (usual if options["data"] == WORLD else None),
        echo=say,
        progress=progress,
        line=line(),
        environment=environment(),
        **{name: options[name] for name in ("device", "workers", "report_to", "start_over")},
    )


def read_facts(options: Mapping[str, Any], call: Any, world: str = "world") -> Any:
    """Return the facts of --data, with the first training pictures alone, and tell what they hold."""
    pairs = [column.partition("=") for column in options["column"] or ()]
    if any(not (name and theirs) for name, _, theirs in pairs):
        raise usage("--column: give KEY=COLUMN, such as captions=sentences.")
    own, embedded = {"images": options["images"], "on_bad": options["on_bad"]}, options["data"] == WORLD
    opened = import_module("lvlm_guard.adapters.data").open_facts(
        world if embedded else options["data"], columns={name: theirs for name, _, theirs in pairs} or None, **own
    )
    facts = opened.first(options["pictures"] or (1200 if embedded else None))
    call.told().echo(facts.summary())
    return facts


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


def length(options: Mapping[str, Any], data: Any, epochs: int | None, steps: int | None, world: int) -> Length:
    """Return how long to train; a pass over the data is the same one on any number of processes.

    Args:
        options: the shared ones; `accumulate` batches are a step.
        data: the data set.
        epochs: passes over the training rows; None: 10.
        steps: instead of epochs; None for the default.
        world: steps on the embedded world, where minutes count.
    """
    embedded = options["data"] == WORLD
    size = options["batch"] or (32 if embedded else 64)
    epoch = max(1, len(data.parted()[0].rows) // (size * options["accumulate"]))
    return Length(size, epoch, steps or (epochs * epoch if epochs else world if embedded else 10 * epoch))


def recipe(options: Mapping[str, Any], long: Length, looks: int = 4, narrow: bool = True, **more: Any) -> Any:
    """Return a training's recipe.

    Args:
        options: the shared ones.
        long: how long it is.
        looks: measurements of a training on the embedded world; elsewhere one an epoch.
        narrow: whether the embedded world is trained in bfloat16.
        **more: of the recipe.
    """
    world = options["data"] == WORLD
    precision = "bfloat16" if world and narrow and options["precision"] == "auto" else options["precision"]
    return import_module("lvlm_guard.adapters.training.recipe").Recipe(
        steps=long.steps,
        batch=long.batch,
        accumulate=options["accumulate"],
        measure_every=options["measure_every"] or (max(1, long.steps // looks) if world else long.epoch),
        precision=precision,
        **{name: options[name] for name in ("patience", "save_every")},
        **more,
    )


MOST_COLUMNS = 8
"""Of a table on a terminal; wider ones are in the report."""


def finish(call: Any, report: dict[str, Any], json: bool) -> None:
    """Print what a training found."""
    if not call.main:
        return
    if json:
        rest = {key: value for key, value in report.items() if key not in ("command", "version", "environment", "rows")}
        print_json(report["command"], report["rows"], **rest)
        return
    told = import_module("lvlm_guard.report.comparison")
    for task, (methods, figures) in told.compared(report["rows"]).items():
        shown = Table(task, *methods, box=None)
        for metric, each in figures.items():
            shown.add_row(metric, *(escape(told.cell(row)) for row in each))
        if len(methods) <= MOST_COLUMNS:
            out().print(shown)
    for line in told.verdicts(report["rows"]):
        out().print(escape(line), soft_wrap=True)
    for folder, kept in zip(report["adapters"], report["kept"], strict=True):
        note = "  (no epoch was better than the untuned CLIP, which is kept)" if kept["kept"] == -1 else ""
        out().print(f"adapter  {escape(folder)}{note}", soft_wrap=True)
    out().print(f"report   {escape(str(call.out / 'report.html'))}", soft_wrap=True)
