"""`lvlm-guard train distill`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.markup import escape

from lvlm_guard.cli.console import environment, out, print_json, quiet_libraries, say, usage
from lvlm_guard.cli.distilled import measured, show
from lvlm_guard.cli.options import WORLD_ONLY, Device, Dtype, Json, Knobs, Model, method_of
from lvlm_guard.cli.trained import Config, line, needs_extra, numbers
from lvlm_guard.progress import progress


def distill(
    model: Model = "embedded",
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of pictures; no labels. [default: scenes of the embedded world]", metavar="FOLDER"),
    ] = None,
    out_: Annotated[Path, typer.Option("--out", help="Folder; goes on where it stopped.")] = Path("distilled"),
    method: Annotated[str, typer.Option(help="The guard to imitate; `lvlm-guard methods` lists them.")] = "vote",
    knob: Knobs = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A prompt a line; {article} {object} stand for each object. [default: captions, is-there-a]"),
    ] = None,
    objects: Annotated[
        str | None, typer.Option(help="List of objects to ask about. [default: COCO's 80, the world's 54]")
    ] = None,
    other_prompts: Annotated[
        Path | None, typer.Option(help="Prompts not trained on, a line each, to see what changes elsewhere.")
    ] = None,
    pictures: Annotated[int | None, typer.Option(min=1, help="To learn from. [default: all; embedded 4000]")] = None,
    held_out: Annotated[int, typer.Option(min=1, help="Pictures kept apart to measure on.")] = 100,
    questions: Annotated[
        int | None, typer.Option(min=0, help="Objects asked about in each picture. [default: 16; embedded all]")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 128,
    corrupt: Annotated[Literal["skip", "refuse"], typer.Option(help="Pictures that can't be read.")] = "skip",
    at_once: Annotated[
        int | None, typer.Option(min=1, help="Prompts of one generate() call. [default: 8; embedded 256]")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of training.")] = 500,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Pictures that are in memory together. [default: 2; embedded 24]")
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(min=1, help="Batches of one step. [default: 12; embedded 1]")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Peak learning rate. [default: 2e-4; embedded 2e-3]", min=1e-8)
    ] = None,
    rank: Annotated[int, typer.Option(min=1, help="Of the LoRA; its alpha is twice that.")] = 16,
    projector: Annotated[
        bool, typer.Option("--projector", help="Adapt the layers that feed in the picture too; vLLM can't serve that.")
    ] = False,
    soft: Annotated[
        bool, typer.Option("--soft/--hard", help="Learn the guard's distribution where it had a choice, or its token.")
    ] = True,
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="Hold on to the plain distribution where the guard had no say.")
    ] = True,
    fresh: Annotated[
        float,
        typer.Option(min=0, help="Leave out what is named again where the rest holds this share; above 1: keep."),
    ] = 0.1,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Recompute activations: slower, less memory.")
    ] = False,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 50,
    seeds: Annotated[str, typer.Option(help="Of training, comma-separated: an adapter each.")] = "0",
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Embedded: POPE and CHAIR of plain, distilled and guarded.")
    ] = True,
    start_over: Annotated[bool, typer.Option("--start-over", help="Drop what an earlier run left in --out.")] = False,
    retrain: Annotated[bool, typer.Option("--retrain", help="Keep the answers, train anew.")] = False,
    revision: Annotated[str, typer.Option(help="Of --model on the hub.")] = "",
    device: Device = "auto",
    dtype: Dtype = "auto",
    config: Config = None,
    json: Json = False,
) -> None:
    """Train a LoRA that makes the plain model answer as the guarded one does.

    The guarded model answers about pictures without labels; a stock PEFT LoRA learns its answers. The
    result is a tuned model at the plain model's cost: nothing guards it any more. Stopped at any moment,
    the same command goes on. On several GPUs: accelerate launch -m lvlm_guard train distill ...

    [bold]Example:[/bold] lvlm-guard train distill --model llava-hf/llava-1.5-7b-hf --images photos --out distilled
    """
    quiet_libraries()
    needs_extra()
    world = model == "embedded"
    room, told, training = (
        import_module(f"lvlm_guard.adapters.distill.{name}") for name in ("run", "lessons", "training")
    )
    method_of(method, knob)  # a wrong knob is found before anything is loaded
    given = {name: value for name, value in (("prompts", _lines(prompts)), ("other", _lines(other_prompts))) if value}
    names = _objects(objects, world)
    lessons = told.Lessons(
        model=model,
        images=str(images or ""),
        method=method,
        knobs=_knobs(method, knob),
        **(_of_the_world() if world else {}) | given,
        objects=names,
        pictures=pictures,
        held_out=held_out,
        questions=questions if questions is not None else len(names) if world else 16,
        max_new_tokens=max_new_tokens,
        corrupt=corrupt,
        revision=revision,
        dtype=dtype,
    )
    recipe = training.Recipe(
        steps=steps,
        batch=batch or (24 if world else 2),
        accumulate=accumulate or (1 if world else 12),
        rate=rate if rate is not None else 2e-3 if world else 2e-4,
        rank=rank,
        alpha=2 * rank,
        projector=projector,
        soft=soft,
        keep=keep,
        fresh=fresh,
        checkpointing=checkpointing,
        save_every=save_every,
    )
    call = import_module("lvlm_guard.adapters.training.recipe").Call(
        out_, numbers(seeds), device, start_over, say, progress, line(), environment()
    )
    report = room.distill(lessons, recipe, call, at_once=at_once or (256 if world else 8), retrain=retrain)
    if not call.main:
        return
    report["remarks"] = [WORLD_ONLY] if world and images else []
    if world and measure:
        report["rows"] += measured(out_, lessons, report, device)
    page = room.keep_report(out_, report)
    if json:
        rest = {key: value for key, value in report.items() if key not in ("command", "version", "environment", "rows")}
        print_json("train distill", report["rows"], **rest)
        return
    show(report)
    for folder in report["adapters"]:
        out().print(f"adapter  {escape(folder)}", soft_wrap=True)
    out().print(f"report   {escape(str(page))}", soft_wrap=True)
    if not world:
        adapters = " ".join(f"--adapter distilled={folder}" for folder in report["adapters"])
        say(f"With labels: lvlm-guard eval run --model {model} {adapters} --methods {method} --tasks pope_coco ...")


COMMAND = distill


def _of_the_world() -> dict[str, tuple[str, ...]]:
    """Return the prompts that the embedded model knows; it has words for no other."""
    from lvlm_guard.embedded.world import CAPTION_PROMPT

    return {"prompts": (CAPTION_PROMPT, "is there {article} {object} in the image ?"), "other": ()}


def _objects(source: str | None, world: bool) -> tuple[str, ...]:
    if source is None and world:
        from lvlm_guard.embedded.world import CLASSES

        return tuple(CLASSES)
    if source is None:
        return ()
    from lvlm_guard.matching.vocabulary import Vocabulary

    return tuple(",".join(words) for _, words in Vocabulary.of(source).objects)


def _knobs(method: str, pairs: list[str] | None) -> dict[str, Any]:
    from lvlm_guard.cli.options import knob_value

    told = (pair.partition("=") for pair in pairs or ())
    return {name.strip(): knob_value(method, name.strip(), value.strip()) for name, _, value in told}


def _lines(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise usage(f"{path} can't be read ({error}): give a text file with a prompt a line.") from None
    found = tuple(line for line in lines if line and not line.startswith("#"))
    if not found:
        raise usage(f"{path} holds no prompt: write one a line.")
    return found
