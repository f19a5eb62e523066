"""`lvlm-guard train claims`."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from lvlm_guard.cli.console import quiet_libraries, usage
from lvlm_guard.cli.options import with_options_of
from lvlm_guard.cli.trained import WORLD, asked, finish, length, needs_extra, read_facts, recipe, shared


@with_options_of(shared)
def claims(
    *,
    preset: Annotated[
        list[str] | None, typer.Option(help="A published work; `train presets` lists them. Repeatable. [default: dcar]")
    ] = None,
    out: Annotated[Path, typer.Option(help="A folder in it for each preset; goes on where it stopped.")] = Path(
        "claims"
    ),
    epochs: Annotated[int | None, typer.Option(min=1, help="Over the pairs. [default: the work's]")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of training, instead of --epochs. [embedded: 160]")] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", "--lr", min=1e-9, help="Peak learning rate. [default: the work's]")
    ] = None,
    weight: Annotated[float, typer.Option(min=0, help="Of the loss on claims, beside the work's own losses.")] = 1.0,
    novel: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of objects about which no claim is trained.")
    ] = 0.25,
    init: Annotated[
        list[str] | None,
        typer.Option(help="Adapters of the same prompts whose mean is started from. Repeatable.", metavar="FOLDER"),
    ] = None,
    teacher: Annotated[
        str, typer.Option(help="A larger CLIP for caspl to learn from first, a folder or hub id.", metavar="CLIP")
    ] = "",
    bank: Annotated[
        str, typer.Option(help="JSON file of sentences about objects, for cupl, kapt.", metavar="FILE")
    ] = "",
    proposer: Annotated[
        str,
        typer.Option(
            help="Command of an LLM for ipo and glov: message in, prompts out, one a line.", metavar="COMMAND"
        ),
    ] = "",
    depth: Annotated[int | None, typer.Option(min=1, help="Layers with prompts. [default: the work's]")] = None,
    validation: Annotated[
        int | None, typer.Option(min=2, help="Validation pictures to measure on. [default: all; embedded 200]")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Measure all presets, and CLIP as it is, on the test part.")
    ] = False,
    **options: Any,
) -> None:
    """Train published ways of adapting CLIP to judge claims: "a photo of a dog".

    Facts say which claims hold of which pictures and which don't; what they don't say is unknown. Each preset has its
    own losses, rate and length. Stopped at any moment, the same command goes on.

    [bold]Example:[/bold] lvlm-guard train claims --preset maple --preset promptsrc --data facts.jsonl --compare
    """
    quiet_libraries()
    needs_extra()
    world = options["data"] == WORLD
    presets, room, training, free = (
        import_module(f"lvlm_guard.adapters.{name}")
        for name in ("presets", "training.runs", "training.dual_prompt", "training.free")
    )
    names = preset or ["dcar"]
    if len(set(names)) < len(names):
        raise usage(f"--preset {', '.join(names)}: give each once.")
    works = [presets.preset(name) for name in names]  # a wrong name is found before anything is read
    given = {"init": tuple(init or ()), "bank": bank, "proposer": proposer, "teacher": teacher}
    for work in works:
        free.ready(replace(work.plan, **given))  # so is what its turn would lack, hours later
    call = asked(options, out, compare, 400)
    facts = read_facts(options, call)
    plans = {}
    for work in works:
        plan = replace(work.plan, clip=options["clip"], losses=replace(work.plan.losses, claims=weight), **given)
        plans[work.name] = plan if depth is None else replace(plan, depth=depth)
        facts = training.fitting(plans[work.name], facts)
        if work.lacks:
            call.told().echo(f"{work.name} (arXiv:{work.identifier}) is not exact here: {work.lacks}.")
    withheld = training.withheld(facts.captions, novel)
    chosen: dict[str, Any] = {}
    for work in works:
        long = length(options, facts.captions, epochs or (None if world else work.epochs), steps, 160)
        chosen[work.name] = (
            replace(plans[work.name], withheld=withheld),
            recipe(options, long, rate=rate or work.rate, optimizer=work.optimizer),
        )
    report = room.train_retrievers(call, facts.captions, chosen, validation or (200 if world else None))
    finish(call, report, options["json"])


COMMAND = claims
