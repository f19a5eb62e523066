"""`lvlm-guard train`: a command for each module of this folder that is called train_NAME and has a COMMAND."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import typer

from lvlm_guard.cli.console import reporting

training = typer.Typer(
    name="train",
    help="Train small parts: PEFT adapters of a matcher, or of the model itself.\n\n"
    "[bold]Example:[/bold] lvlm-guard train distill --out distilled",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

for module in sorted(path.stem for path in Path(__file__).parent.glob("train_*.py")):
    command = import_module(f"lvlm_guard.cli.{module}").COMMAND
    training.command(module.removeprefix("train_").replace("_", "-"))(reporting(command))
