"""`lvlm-guard eval judge`: what a judge of one's own is to be asked of a run's answers to MMHal-Bench."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from lvlm_guard import __version__
from lvlm_guard.cli.console import out, print_object
from lvlm_guard.cli.options import Json


def judge(
    folder: Annotated[Path, typer.Argument(help="A run that asked mmhal.", metavar="DIR")],
    prompt: Annotated[
        Path,
        typer.Option(
            help="The judge's prompt, with {image_content}, {question}, {gt_answer}, {model_answer}.", exists=True
        ),
    ],
    json: Json = False,
) -> None:
    """Write a judge's requests: chat requests as JSON lines, a file for each decoder and seed.

    No judge is built in. Its reply is a JSON file in DIR/verdicts with "judge" (model, date), "prompt_sha256" and
    "answers_sha256" (as in the requests) and "verdicts", 96 texts or chat completions in order; eval score reads it.

    [bold]Example:[/bold] lvlm-guard eval judge runs/first --prompt prompt.txt
    """
    text = prompt.read_text(encoding="utf-8")
    written = import_module("lvlm_guard.evals.tasks.mmhal").write_requests(folder, text)
    if json:
        print_object({"command": "eval judge", "version": __version__, "requests": [str(path) for path in written]})
        return
    for path in written:
        out().print(f"requests  {path}", soft_wrap=True, markup=False)
