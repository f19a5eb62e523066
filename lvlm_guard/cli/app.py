"""The list of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from lvlm_guard import __version__
from lvlm_guard.cli.batch import batch
from lvlm_guard.cli.bench import bench
from lvlm_guard.cli.calibrate import calibrate
from lvlm_guard.cli.console import reporting
from lvlm_guard.cli.demo import demo
from lvlm_guard.cli.doctor import doctor
from lvlm_guard.cli.evaluation import evaluation
from lvlm_guard.cli.generate import generate
from lvlm_guard.cli.mask import mask
from lvlm_guard.cli.maskd import maskd
from lvlm_guard.cli.methods import methods
from lvlm_guard.cli.play import play
from lvlm_guard.cli.serve import PASSED_ON, serve
from lvlm_guard.cli.train import training

app = typer.Typer(
    name="lvlm-guard",
    help="Vision-language models that say less of what is not in the picture. Start with: lvlm-guard demo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _all_commands(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


app.add_typer(evaluation, name="eval")
app.add_typer(training, name="train")
for command in (demo, generate, mask, batch, bench, doctor, methods, calibrate, maskd, play):
    app.command(command.__name__)(reporting(command))
app.command("serve", context_settings=PASSED_ON)(reporting(serve))
