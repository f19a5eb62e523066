"""`lvlm-guard train dual-prompt`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from lvlm_guard.cli.settings import Usual
from lvlm_guard.cli.trained import Recipe, Training, Validation, finish, ready, told_of

_RATE = Option(
    "--rate", "--lr", min=1e-9, help="Peak learning rate. [default: 1e-3 for adamw, 3.5e-3 for sgd; embedded 2e-2]"
)
_STRENGTH = Option("--lambda", min=0, help="Strength of word weights in the loss against swaps; 0: none.")
_CLAIMS = Option(min=0, help='Weight of judging "a photo of a dog", as the guard asks; costs recall.')
_NEGCLIP = Option("--negclip/--no-negclip", help="Swaps of all captions against each picture. [default: embedded]")


@dataclass(frozen=True)
class Sizes:
    """Of prompts, where they are not the configuration's own."""

    depth: Annotated[int | None, Option(min=1, help="Layers with prompts. [default: 9, at most the CLIP's]")] = None
    n_ctx: Annotated[int | None, Option(min=1, help="Prompts of a layer. [default: 4; maple 2]")] = None
    coupling_rank: Annotated[int | None, Option(min=0, help="Of text to vision; 0: full. [default: 16]")] = None


@dataclass(frozen=True)
class Losses:
    """Weights of a `LossStack`."""

    alpha: Annotated[float, Option(min=0, help="Extra weight of negatives of the same category.")] = 0.5
    hard_negative: Annotated[float, Option("--hard", min=0, help="Weight of the loss against swaps.")] = 1.0
    claims: Annotated[float, _CLAIMS] = 0.0
    consistency: Annotated[float, Option(min=0, help="Weight of staying near the frozen features.")] = 0.0


def dual_prompt(
    training: Training,
    recipe: partial[Recipe],
    sizes: Sizes,
    losses: Losses,
    out: Annotated[Path, Option(help="Folder; goes on where it stopped.")] = Path("dual-prompt"),
    epochs: Annotated[int | None, Option(min=1, help="Over the pairs. [default: 10]")] = None,
    steps: Annotated[int | None, Option(min=1, help="Of training, instead of --epochs. [embedded: 160]")] = None,
    rate: Annotated[float | None, _RATE] = None,
    optimizer: Annotated[Literal["adamw", "sgd"], Option(help="sgd suits --coupling-rank 0.")] = "adamw",
    preset: Annotated[
        str | None, Option(help="A published work's prompts, losses and rate; `train presets` lists them.")
    ] = None,
    prompts: Annotated[str, Option(help="dual-prompt, maple, independent, coop or vpt.")] = "dual-prompt",
    weights: Annotated[float, _STRENGTH] = 0.0,
    negclip: Annotated[bool | None, _NEGCLIP] = None,
    alike: Annotated[int, Option(min=1, help="Pairs of a category in a batch together."), Usual(1, embedded=4)] = 1,
    validation: Validation = None,
    compare: Annotated[
        bool, Option("--compare", help="Train CoOp and MaPLe too, and measure all on the test part.")
    ] = False,
) -> None:
    """Train prompts that let a CLIP tell categories, colours and numbers apart.

    DCAR's dual prompts as a PEFT adapter, kept by recall and swaps on validation; where no epoch is better
    than the untuned CLIP, that is kept, and said. `--data` is a file of facts, a folder, .tar shards or
    hf:owner/name; `python -m lvlm_guard.adapters.data --help` converts published layouts. Stopped at any
    moment, the same command goes on. On several GPUs: accelerate launch -m lvlm_guard train dual-prompt ...

    [bold]Example:[/bold] lvlm-guard train dual-prompt --data captions.jsonl --clip openai/clip-vit-base-patch32
    """
    ready()
    room, dual, stack = (
        import_module(f"lvlm_guard.adapters.{name}") for name in ("training.runs", "training.dual_prompt", "losses")
    )
    call = training.call(out, compare, 400)
    facts = training.facts(call)
    terms = stack.LossStack(**asdict(losses), negclip=training.world if negclip is None else negclip)
    own = {"prompts": prompts, "strength": weights, "losses": terms, "alike": alike}
    plan = dual.Plan(clip=training.clip, **asdict(sizes), **own)
    if preset is not None:
        work = import_module("lvlm_guard.adapters.presets").preset(preset)
        given = {name: size for name, size in asdict(sizes).items() if size is not None}
        plan = replace(work.plan, clip=training.clip, **given)
        optimizer, rate, epochs = work.optimizer, rate or work.rate, epochs or work.epochs
        told_of(call, work)
    facts = dual.fitting(plan, facts)
    rate = rate or (2e-2 if training.world else 3.5e-3 if optimizer == "sgd" else 1e-3)
    how = training.recipe(recipe, facts.captions, epochs, steps, 160, rate=rate, optimizer=optimizer)
    finish(call, room.train_retrievers(call, facts.captions, {"dual-prompt": (plan, how)}, validation), training.json)
