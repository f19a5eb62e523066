"""`lvlm-guard calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from lvlm_guard import __version__
from lvlm_guard.cli.console import out, print_object, quiet_libraries, say
from lvlm_guard.cli.options import Device, Dtype, Json, Model, objects_of


def calibrate(
    method: Annotated[str, typer.Argument(help="A method that needs statistics.", metavar="NAME", show_default=False)],
    images: Annotated[Path, typer.Option(help="Folder of pictures of your own.", metavar="FOLDER")],
    out_: Annotated[Path, typer.Option("--out", help="The file; the same command goes on after any end.")],
    model: Model = "embedded",
    pictures: Annotated[int | None, typer.Option(min=1, help="The first so many, by name. [default: 100]")] = None,
    prompt: Annotated[str | None, typer.Option(help="Asks for a caption. [default: to describe in detail]")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of a caption.")] = 128,
    matcher: Annotated[str | None, typer.Option(help="Judges captions (adaiat). [default: the model's]")] = None,
    objects: Annotated[str | None, typer.Option(help="A list of the objects that it judges. [default: COCO's]")] = None,
    start_over: Annotated[bool, typer.Option("--start-over", help="Drop what an earlier run left.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Gather the statistics that a method needs (revis, vti, adaiat), on your own pictures; no labels are needed.

    They are of one model, and lie in one file: guard(model, processor, "revis", statistics=FILE), --knob
    statistics=FILE, or eval run --knob revis.statistics=FILE.

    [bold]Example:[/bold] lvlm-guard calibrate revis --images photos --model ID --out revis.safetensors
    """
    from lvlm_guard import calibration
    from lvlm_guard.matching import Vocabulary
    from lvlm_guard.pretrained import load_model

    quiet_libraries()
    kind = calibration.kind_of(method)
    paths = calibration.pictures_in(images, kind.least, pictures or kind.wanted)
    vocabulary = Vocabulary.of(objects_of(objects, model))
    if len(paths) < kind.wanted:
        say(f"{len(paths)} pictures; {kind.wanted} are usual, and fewer give less steady statistics.")
    lvlm, processor = load_model(model, device=device, dtype=dtype)
    subject = calibration.Subject(lvlm, processor, prompt or calibration.PROMPT, max_new_tokens, matcher, vocabulary)
    found = calibration.calibrate(subject, method, paths, out_, start_over=start_over, echo=say)
    lines = kind.summary(found.tensors)
    if json:
        told = {"command": "calibrate", "version": __version__, "file": str(out_), "digest": found.digest}
        print_object(told | dict(found.told) | {"summary": lines})
        return
    for line in lines:
        out().print(escape(line), soft_wrap=True)
    out().print(f"statistics  {escape(str(out_))}  ({found.digest})", soft_wrap=True)
