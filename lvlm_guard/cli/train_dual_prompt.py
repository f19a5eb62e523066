"""`lvlm-guard train dual-prompt`."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import typer

from lvlm_guard.cli.console import quiet_libraries
from lvlm_guard.cli.options import Json
from lvlm_guard.cli.trained import (
    Accumulate,
    Batch,
    Clip,
    Columns,
    Config,
    Data,
    Images,
    MeasureEvery,
    OnBad,
    Patience,
    Pictures,
    Precision,
    ReportTo,
    SaveEvery,
    Seeds,
    StartOver,
    TestPictures,
    TrainDevice,
    Workers,
    asked,
    finish,
    length,
    needs_extra,
    read_facts,
)


def dual_prompt(
    data: Data = "embedded",
    clip: Clip = "embedded",
    out: Annotated[Path, typer.Option(help="Folder; goes on where it stopped.")] = Path("dual-prompt"),
    images: Images = None,
    columns: Columns = None,
    on_bad: OnBad = "raise",
    pictures: Pictures = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Over the pairs. [default: 10]")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of training, instead of --epochs. [embedded: 160]")] = None,
    batch: Batch = None,
    accumulate: Accumulate = 1,
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
    measure_every: MeasureEvery = None,
    patience: Patience = 0,
    save_every: SaveEvery = 50,
    precision: Precision = "auto",
    seeds: Seeds = "0",
    compare: Annotated[
        bool, typer.Option("--compare", help="Train CoOp and MaPLe too, and measure all on the test part.")
    ] = False,
    test_pictures: TestPictures = None,
    workers: Workers = 0,
    report_to: ReportTo = "none",
    config: Config = None,
    device: TrainDevice = "auto",
    start_over: StartOver = False,
    json: Json = False,
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
    world = data == "embedded"
    room, training, recipes, losses = (
        import_module(f"lvlm_guard.adapters.{name}")
        for name in ("training.runs", "training.dual_prompt", "training.recipe", "losses")
    )
    call = asked(out, seeds, compare, device, workers, report_to, start_over, test_pictures or (400 if world else None))
    facts = read_facts(call, "world" if world else data, images, columns, on_bad, pictures or (1200 if world else None))
    plan = training.Plan(
        clip=clip,
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
        sizes = {"depth": depth, "n_ctx": n_ctx, "coupling_rank": coupling_rank}
        plan = replace(chosen.plan, clip=clip, **{name: size for name, size in sizes.items() if size is not None})
        optimizer, rate, epochs = chosen.optimizer, rate or chosen.rate, epochs or chosen.epochs
        if chosen.lacks:
            call.told().echo(f"{preset} (arXiv:{chosen.identifier}) is not exact here: {chosen.lacks}.")
    facts = training.fitting(plan, facts)
    long = length(facts.captions, batch, epochs, steps, 160 if world else None, accumulate)
    recipe = recipes.Recipe(
        steps=long.steps,
        batch=long.batch,
        accumulate=accumulate,
        rate=rate or (2e-2 if world else 3.5e-3 if optimizer == "sgd" else 1e-3),
        optimizer=optimizer,
        measure_every=measure_every or (max(1, long.steps // 4) if world else long.epoch),
        patience=patience,
        save_every=save_every,
        precision="bfloat16" if world and precision == "auto" else precision,
    )
    most = validation or (200 if world else None)
    finish(call, room.train_retrievers(call, facts.captions, {"dual-prompt": (plan, recipe)}, most), json)


COMMAND = dual_prompt
