"""`lvlm-guard train`: its commands are those that are registered as `train.NAME`."""

from __future__ import annotations

import typer

from lvlm_guard.cli.app import LOOK, Group

training = typer.Typer(cls=Group, add_completion=False, **LOOK)


@training.callback()
def _about() -> None:
    """Train small parts: PEFT adapters of a matcher, or of the model itself.

    [bold]Example:[/bold] lvlm-guard train distill --out distilled
    """
