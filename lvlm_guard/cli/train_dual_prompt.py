"""`lvlm-guard train dual-prompt`."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lvlm_guard.cli.console import quiet_libraries
from lvlm_guard.cli.options import with_options_of
from lvlm_guard.cli.trained import WORLD, asked, finish, length, needs_extra, read_facts, recipe, shared


@with_options_of(shared)
def dual_prompt(
    *,
    out: Annotated[Path, typer.Option(help="Folder; goes on where it stopped.")] = Path("dual-prompt"),
    epochs: Annotated[int | None, typer.Option(min=1, help="Over the pairs. [default: 10]")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of training, instead of --epochs. [embedded: 160]")] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate",
            "--lr",
            min=1e-9,
            help="Peak learning rate. [default: 1e-3 for adamw, 3.5e-3 for sgd; embedded 2e-2]",
        ),
    ] = None,
    optimizer: Annotated[Literal["adamw", "sgd"], typer.Option(help="sgd suits --coupling-rank 0.")] = "adamw",
    preset: Annotated[
        str | None, typer.Option(help="A published work's prompts, losses and rate; `train presets` lists them.")
    ] = None,
    prompts: Annotated[str, typer.Option(help="dual-prompt, maple, independent, coop or vpt.")] = "dual-prompt",
    depth: Annotated[
        int | None, typer.Option(min=1, help="Layers with prompts. [default: 9, at most the CLIP's]")
    ] = None,
    n_ctx: Annotated[int | None, typer.Option(min=1, help="Prompts of a layer. [default: 4; maple 2]")] = None,
    coupling_rank: Annotated[int | None, typer.Option(min=0, help="Of text to vision; 0: full. [default: 16]")] = None,
    weights: Annotated[
        float, typer.Option("--lambda", min=0, help="Strength of word weights in the loss against swaps; 0: none.")
    ] = 0.0,
    alpha: Annotated[float, typer.Option(min=0, help="Extra weight of negatives of the same category.")] = 0.5,
    hard: Annotated[float, typer.Option(min=0, help="Weight of the loss against swaps.")] = 1.0,
    negclip: Annotated[
        bool | None,
        typer.Option("--negclip/--no-negclip", help="Swaps of all captions against each picture. [default: embedded]"),
    ] = None,
    alike: Annotated[
        int | None, typer.Option(min=1, help="Pairs of a category in a batch together. [default: 1; embedded 4]")
    ] = None,
    claims: Annotated[
        float, typer.Option(min=0, help='Weight of judging "a photo of a dog", as the guard asks; costs recall.')
    ] = 0.0,
    consistency: Annotated[float, typer.Option(min=0, help="Weight of staying near the frozen features.")] = 0.0,
    validation: Annotated[
        int | None, typer.Option(min=2, help="Validation pictures to measure on. [default: all; embedded 200]")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Train CoOp and MaPLe too, and measure all on the test part.")
    ] = False,
    **options: Any,
) -> None:
    """Train prompts that let a CLIP tell categories, colours and numbers apart.

    DCAR's dual prompts as a PEFT adapter, kept by recall and swaps on validation; where no epoch is better
    than the untuned CLIP, that is kept, and said. `--data` is a file of facts, a folder, .tar shards or
    hf:owner/name; `python -m lvlm_guard.adapters.data --help` converts published layouts. Stopped at any
    moment, the same command goes on. On several GPUs: accelerate launch -m lvlm_guard train dual-prompt ...

    [bold]Example:[/bold] lvlm-guard train dual-prompt --data captions.jsonl --clip openai/clip-vit-base-patch32
    """
    quiet_libraries()
    needs_extra()
    world = options["data"] == WORLD
    room, training, losses = (
        import_module(f"lvlm_guard.adapters.{name}") for name in ("training.runs", "training.dual_prompt", "losses")
    )
    call = asked(options, out, compare, 400)
    facts = read_facts(options, call)
    plan = training.Plan(
        clip=options["clip"],
        prompts=prompts,
        depth=depth,
        n_ctx=n_ctx,
        coupling_rank=coupling_rank,
        strength=weights,
        losses=losses.LossStack(
            hard_negative=hard,
            claims=claims,
            consistency=consistency,
            alpha=alpha,
            negclip=world if negclip is None else negclip,
        ),
        alike=alike or (4 if world else 1),
    )
    chosen = None if preset is None else import_module("lvlm_guard.adapters.presets").preset(preset)
    if chosen is not None:
        given = {"depth": depth, "n_ctx": n_ctx, "coupling_rank": coupling_rank}
        given = {name: size for name, size in given.items() if size is not None}
        plan = replace(chosen.plan, clip=options["clip"], **given)
        optimizer, rate, epochs = chosen.optimizer, rate or chosen.rate, epochs or chosen.epochs
        if chosen.lacks:
            call.told().echo(f"{preset} (arXiv:{chosen.identifier}) is not exact here: {chosen.lacks}.")
    facts = training.fitting(plan, facts)
    long = length(options, facts.captions, epochs, steps, 160)
    usual = 2e-2 if world else 3.5e-3 if optimizer == "sgd" else 1e-3
    how = {"dual-prompt": (plan, recipe(options, long, rate=rate or usual, optimizer=optimizer))}
    report = room.train_retrievers(call, facts.captions, how, validation or (200 if world else None))
    finish(call, report, options["json"])


COMMAND = dual_prompt
