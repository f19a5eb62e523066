"""`lvlm-guard train ranker`."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lvlm_guard.cli.console import quiet_libraries
from lvlm_guard.cli.options import with_options_of
from lvlm_guard.cli.trained import WORLD, asked, finish, length, needs_extra, read_facts, recipe, shared

SMALL = {"prompts": 4, "fusion_layers": 1, "post_layers": 1, "dropout": 0.0}
"""Of the ranker, beside its width, where the tiny CLIP is enough and minutes count."""


@with_options_of(shared)
def ranker(
    *,
    out: Annotated[Path, typer.Option(help="Folder; goes on where it stopped.")] = Path("ranker"),
    by: Annotated[Literal["count", "size", "brightness"], typer.Option(help="Order of --data embedded.")] = "count",
    objects: Annotated[
        str | None,
        typer.Option(
            help="Order by these alone, comma-separated. [default: all; embedded: the 12 that are counted to 6]"
        ),
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="What is asked, {object} where the name goes.")] = None,
    lonely: Annotated[
        Literal["raise", "skip"], typer.Option(help="Objects whose pictures all have one value.")
    ] = "raise",
    epochs: Annotated[int | None, typer.Option(min=1, help="Over the values. [default: 10]")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of training, instead of --epochs. [embedded: 500]")] = None,
    negatives: Annotated[float, typer.Option(min=0, max=0.9, help="Share of a group without the object.")] = 0.2,
    rate: Annotated[
        float | None,
        typer.Option("--rate", "--lr", min=1e-9, help="Peak learning rate. [default: 5e-5; embedded 2e-3]"),
    ] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Of the ranker. [default: 512; embedded 64]")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Of its attention. [default: 8; embedded 4]")] = None,
    relations: Annotated[
        int | None, typer.Option(min=1, help="Queries that compare two pictures. [default: 16; embedded 8]")
    ] = None,
    trunk: Annotated[Literal["frozen", "tuned"], typer.Option(help="tuned: a LoRA in both towers.")] = "frozen",
    rank: Annotated[int, typer.Option(min=1, help="Of that LoRA.")] = 8,
    ties: Annotated[
        Literal["half", "drop", "published"], typer.Option(help="What pairs of equal values are told.")
    ] = "half",
    scale: Annotated[
        Literal["auto", "raw", "standard"], typer.Option(help="Values as they are, or standardised.")
    ] = "auto",
    regression: Annotated[
        float | None,
        typer.Option(min=0, help="Weight of the values' loss beside the pairs'. [default: 0.2; embedded 0.5]"),
    ] = None,
    start: Annotated[
        Literal["aligned", "random"], typer.Option(help="aligned: from CLIP's own projections; random: as the paper.")
    ] = "aligned",
    compare: Annotated[
        bool, typer.Option("--compare", help="Measure beside zero-shot CLIP and a linear probe.")
    ] = False,
    **options: Any,
) -> None:
    """Train a CLIP to order pictures by how much of something they show: counts, sizes, quality, age.

    The ranking-aware adapter as a PEFT adapter, kept by its order on validation (SRCC, ties by MAE). `--data`
    is a file of facts, a folder, .tar shards or hf:owner/name; `python -m lvlm_guard.adapters.data --help`
    converts published layouts. Stopped at any moment, the same command goes on. On several GPUs:
    accelerate launch -m lvlm_guard train ranker ...

    [bold]Example:[/bold] lvlm-guard train ranker --data counts.jsonl --clip openai/clip-vit-base-patch16
    """
    quiet_libraries()
    needs_extra()
    world = options["data"] == WORLD
    room, training, settings = (
        import_module(f"lvlm_guard.adapters.{name}") for name in ("training.runs", "training.ranker", "ranker.card")
    )
    call = asked(options, out, compare, 500)
    facts = read_facts(options, call, f"world:{by}")
    opened = (facts if instruction is None else replace(facts, template=instruction)).ranks
    names = objects.split(",") if objects else _counted() if world and by == "count" else None
    if names is not None:
        opened = opened.about([name.strip() for name in names])
    opened = opened.teaching("skip" if world else lonely)
    sizes: dict[str, Any] = {"width": width or (64 if world else 512), "heads": heads or (4 if world else 8)}
    sizes |= {"relations": relations or (8 if world else 16)} | (SMALL if world else {})
    sizes["regression_weight"] = regression if regression is not None else 0.5 if world else 0.2
    plan = training.Plan(
        clip=options["clip"],
        settings=settings.RankerSettings(**sizes, ties=ties),
        trunk=trunk,
        rank=rank,
        negatives=negatives,
        scale=scale,
        start=start,
    )
    options["accumulate"] = -(-options["accumulate"] // call.state.num_processes) * call.state.num_processes
    long = length(options, opened, epochs, steps, 500)
    how = recipe(options, long, 8, narrow=False, rate=rate or (2e-3 if world else 5e-5))
    finish(call, room.train_ranker(call, opened, plan, how), options["json"])


def _counted() -> list[str]:
    return list(import_module("lvlm_guard.embedded.captioned").COUNTED)


COMMAND = ranker
