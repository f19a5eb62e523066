"""`lvlm-guard eval verify`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from lvlm_guard.cli.console import out, print_object, quiet_libraries, say
from lvlm_guard.cli.options import Device, Dtype, Json, Matchers, Model, matchers_of
from lvlm_guard.cli.trained import line

EMBEDDED = ("blip-itm", "clip", "dual-prompt", "ranker")
OTHERS = ("blip-itm", "clip")


def verify(
    model: Model = "embedded",
    matcher: Matchers = None,
    clip: Annotated[
        str, typer.Option(help="The untuned CLIP of the baselines: a folder or hub id; calibrated if it can be.")
    ] = "clip",
    task: Annotated[str, typer.Option(help="world_chair, or chair (COCO). [default: as suits the model]")] = "",
    out_: Annotated[Path, typer.Option("--out", help="Folder; a run goes on where it stopped.")] = Path("verify-out"),
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures.", metavar="FOLDER")] = None,
    annotations: Annotated[Path | None, typer.Option(help="COCO's annotations, or a CHAIR ground truth.")] = None,
    questions: Annotated[list[Path] | None, typer.Option(help="A list of pictures to describe.")] = None,
    split: Annotated[Literal["test", "val"], typer.Option(help="val is for choosing settings.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="Pictures. [default: the task's]")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer. [default: the task's]")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures at once. [default: 1; embedded 64]")] = None,
    start_over: Annotated[bool, typer.Option("--start-over", help="Drop what an earlier run left in --out.")] = False,
    revision: Annotated[str, typer.Option(help="Of --model on the hub.")] = "",
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
) -> None:
    """Measure how well verifiers tell named objects that are there from hallucinated ones.

    The plain model describes pictures; every verifier is asked about each object named: the matchers, as
    --verify asks them, beside calibrated CLIP, CLIP-guided decoding's detector, F-CLIPScore and the model's
    own token probability. Writes answers.parquet and report.json; the same command goes on
    after any end, and with another --matcher asks that one alone.

    [bold]Example:[/bold] lvlm-guard eval verify --matcher dual-prompt=out/seed-0 --matcher dual-prompt=out/seed-1
    """
    quiet_libraries()
    matchers = matchers_of(matcher)
    if not matchers:
        matchers = {name: (name,) for name in (EMBEDDED if model == "embedded" else OTHERS)}
    # the guard's default judge stands beside whatever is measured
    matchers = {"blip-itm": ("blip-itm",)} | matchers
    room, asking = import_module("lvlm_guard.evals.studies.verify"), import_module("lvlm_guard.evals.infer.ask")
    settings = import_module("lvlm_guard.evals.spec.settings").Settings(
        model=model,
        tasks=(task or ("world_chair" if model == "embedded" else "chair"),),
        methods=(),
        limit=limit,
        split=split,
        device=device,
        dtype=dtype,
        questions=tuple(str(path) for path in questions or ()),
        images=str(images or ""),
        annotations=str(annotations or ""),
        max_new_tokens=max_new_tokens,
        batch=batch or (asking.MANY if model == "embedded" else 1),
        revision=revision,
        matchers=matchers,
    )
    report = room.verify_run(settings, out_, clip, echo=say, started_over=start_over, line=line())
    if json:
        print_object(report)
        return
    out().print(escape(room.sentences(report)[0]))
    for table in import_module("lvlm_guard.evals.report.terminal").tables(report, out().width):
        out().print(table)
    for sentence in report["remarks"]:
        out().print(escape(sentence))
    out().print(f"report  {escape(str(out_ / 'report.json'))}", soft_wrap=True)
