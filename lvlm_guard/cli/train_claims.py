"""`lvlm-guard train claims`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from lvlm_guard.cli.console import usage
from lvlm_guard.cli.trained import Recipe, Training, Validation, finish, ready, told_of

_INIT = Option(help="Adapters of the same prompts whose mean is started from. Repeatable.", metavar="FOLDER")
_TEACHER = Option(help="A larger CLIP for caspl to learn from first, a folder or hub id.", metavar="CLIP")
_BANK = Option(help="JSON file of sentences about objects, for cupl, kapt.", metavar="FILE")
_PROPOSER = Option(help="Command of an LLM for ipo and glov: message in, prompts out, one a line.", metavar="COMMAND")


@dataclass(frozen=True)
class Given:
    """What a plan is given, whatever the preset."""

    init: Annotated[tuple[str, ...], _INIT] = ()
    teacher: Annotated[str, _TEACHER] = ""
    bank: Annotated[str, _BANK] = ""
    proposer: Annotated[str, _PROPOSER] = ""


def claims(
    given: Given,
    training: Training,
    recipe: partial[Recipe],
    preset: Annotated[
        list[str] | None, Option(help="A published work; `train presets` lists them. Repeatable. [default: dcar]")
    ] = None,
    out: Annotated[Path, Option(help="A folder in it for each preset; goes on where it stopped.")] = Path("claims"),
    epochs: Annotated[int | None, Option(min=1, help="Over the pairs. [default: the work's]")] = None,
    steps: Annotated[int | None, Option(min=1, help="Of training, instead of --epochs. [embedded: 160]")] = None,
    rate: Annotated[
        float | None, Option("--rate", "--lr", min=1e-9, help="Peak learning rate. [default: the work's]")
    ] = None,
    weight: Annotated[float, Option(min=0, help="Of the loss on claims, beside the work's own losses.")] = 1.0,
    novel: Annotated[float, Option(min=0, max=0.9, help="Share of objects about which no claim is trained.")] = 0.25,
    depth: Annotated[int | None, Option(min=1, help="Layers with prompts. [default: the work's]")] = None,
    validation: Validation = None,
    compare: Annotated[
        bool, Option("--compare", help="Measure all presets, and CLIP as it is, on the test part.")
    ] = False,
) -> None:
    """Train published ways of adapting CLIP to judge claims: "a photo of a dog".

    Facts say which claims hold of which pictures and which don't; what they don't say is unknown. Each preset has its
    own losses, rate and length. Stopped at any moment, the same command goes on.

    [bold]Example:[/bold] lvlm-guard train claims --preset maple --preset promptsrc --data facts.jsonl --compare
    """
    ready()
    presets, room, dual, free = (
        import_module(f"lvlm_guard.adapters.{name}")
        for name in ("presets", "training.runs", "training.dual_prompt", "training.free")
    )
    names = preset or ["dcar"]
    if len(set(names)) < len(names):
        raise usage(f"--preset {', '.join(names)}: give each once.")
    works = [presets.preset(name) for name in names]  # a wrong name is found before anything is read
    for work in works:
        free.ready(replace(work.plan, **asdict(given)))  # so is what its turn would lack, hours later
    call = training.call(out, compare, 400)
    facts = training.facts(call)
    plans = {}
    for work in works:
        losses = replace(work.plan.losses, claims=weight)
        plan = replace(work.plan, clip=training.clip, losses=losses, **asdict(given))
        plans[work.name] = plan if depth is None else replace(plan, depth=depth)
        facts = dual.fitting(plans[work.name], facts)
        told_of(call, work)
    withheld = dual.withheld(facts.captions, novel)
    chosen: dict[str, Any] = {}
    for work in works:
        passes = epochs or (None if training.world else work.epochs)
        more = {"rate": rate or work.rate, "optimizer": work.optimizer}
        how = training.recipe(recipe, facts.captions, passes, steps, 160, **more)
        chosen[work.name] = (replace(plans[work.name], withheld=withheld), how)
    finish(call, room.train_retrievers(call, facts.captions, chosen, validation), training.json)
