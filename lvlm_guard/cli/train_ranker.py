"""`lvlm-guard train ranker`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Option

from lvlm_guard.cli.settings import Usual
from lvlm_guard.cli.trained import Recipe, Training, finish, ready

if TYPE_CHECKING:
    from lvlm_guard.adapters.ranker.settings import Plan, RankerSettings
else:
    settings = import_module("lvlm_guard.adapters.ranker.settings")
    Plan, RankerSettings = settings.Plan, settings.RankerSettings

SMALL: dict[str, Any] = {"prompts": 4, "fusion_layers": 1, "post_layers": 1, "dropout": 0.0}
"""Of the ranker, beside its width, where the tiny CLIP is enough and minutes count."""

_OBJECTS = Option(help="Order by these alone, comma-separated. [default: all; embedded: the 12 that are counted to 6]")
_RATE = Option("--rate", "--lr", min=1e-9, help="Peak learning rate.")


def ranker(
    training: Training,
    recipe: partial[Recipe],
    sizes: partial[RankerSettings],
    plan: partial[Plan],
    out: Annotated[Path, Option(help="Folder; goes on where it stopped.")] = Path("ranker"),
    by: Annotated[Literal["count", "size", "brightness"], Option(help="Order of --data embedded.")] = "count",
    objects: Annotated[str | None, _OBJECTS] = None,
    instruction: Annotated[str | None, Option(help="What is asked, {object} where the name goes.")] = None,
    lonely: Annotated[Literal["raise", "skip"], Option(help="Objects whose pictures all have one value.")] = "raise",
    epochs: Annotated[int | None, Option(min=1, help="Over the values. [default: 10]")] = None,
    steps: Annotated[int | None, Option(min=1, help="Of training, instead of --epochs. [embedded: 500]")] = None,
    rate: Annotated[float, _RATE, Usual(5e-5, embedded=2e-3)] = 5e-5,
    compare: Annotated[bool, Option("--compare", help="Measure beside zero-shot CLIP and a linear probe.")] = False,
) -> None:
    """Train a CLIP to order pictures by how much of something they show: counts, sizes, quality, age.

    The ranking-aware adapter as a PEFT adapter, kept by its order on validation (SRCC, ties by MAE). `--data`
    is a file of facts, a folder, .tar shards or hf:owner/name; `python -m lvlm_guard.adapters.data --help`
    converts published layouts. Stopped at any moment, the same command goes on. On several GPUs:
    accelerate launch -m lvlm_guard train ranker ...

    [bold]Example:[/bold] lvlm-guard train ranker --data counts.jsonl --clip openai/clip-vit-base-patch16
    """
    ready()
    world = training.world
    room = import_module("lvlm_guard.adapters.training.runs")
    call = training.call(out, compare, 500)
    facts = training.facts(call, f"world:{by}")
    opened = (facts if instruction is None else replace(facts, template=instruction)).ranks
    names = objects.split(",") if objects else _counted() if world and by == "count" else None
    if names is not None:
        opened = opened.about([name.strip() for name in names])
    opened = opened.teaching("skip" if world else lonely)
    planned = plan(clip=training.clip, settings=sizes(**SMALL if world else {}))
    many = call.state.num_processes  # of groups each process takes one at least
    recipe = partial(recipe, accumulate=-(-recipe.keywords["accumulate"] // many) * many)
    how = training.recipe(recipe, opened, epochs, steps, 500, 8, narrow=False, rate=rate)
    finish(call, room.train_ranker(call, opened, planned, how), training.json)


def _counted() -> list[str]:
    return list(import_module("lvlm_guard.embedded.captioned").COUNTED)
