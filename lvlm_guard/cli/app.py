"""The list of commands: the core's, and what rooms and other packages register by an entry point.

An entry point of the group `lvlm_guard.commands` names a function, or a `typer.Typer` where there is more to say of a
command or others are below it; `train.distill` is `distill` of the group `train`. Each is loaded when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup
from typer.main import get_command

from lvlm_guard import __version__
from lvlm_guard.cli.console import reporting, usage
from lvlm_guard.errors import GuardError
from lvlm_guard.registry import Registry

CORE = {"demo": "lvlm_guard.evals.commands:demo"}  # the command to start with stands first, and needs no entry point
CORE |= {n: f"lvlm_guard.cli.{n}:{n}" for n in ("generate", "mask", "batch", "bench", "doctor", "methods", "calibrate")}
COMMANDS = Registry("command", "lvlm_guard.commands", CORE)
LOOK: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": "rich", "pretty_exceptions_enable": False}
"""Of every group."""


class Group(TyperGroup):
    """Commands of the registry whose names begin as the group's does."""

    _brief = False

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the list, for which the options of its commands need not be read."""
        self._brief = True
        super().format_help(ctx, formatter)

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names, the core's first."""
        above = _path(ctx)
        names = (name.rpartition(".") for name in COMMANDS.names())
        return [last for before, _, last in names if before == above]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, None where there is none of this name."""
        names = self.list_commands(ctx)
        if cmd_name not in names and set(COMMANDS.names()) <= {*CORE}:
            raise usage(
                f"There is no {cmd_name!r} here: commands are entry points, and none is installed, as where lvlm-guard "
                "runs from its sources alone or was installed before it had any. Install it: pip install -e ."
            )
        if cmd_name not in names:
            self.commands = dict.fromkeys(names, self)  # typer suggests from its keys
            return None
        return command_of(f"{_path(ctx)}.{cmd_name}".lstrip("."), self._brief)


def command_of(name: str, brief: bool = False) -> Any:
    """Return a registered command as typer runs it, "train.distill" for one of a group; in brief without options."""
    try:
        command = _made(COMMANDS.get(name), brief)
    except (Exception, SystemExit) as error:  # another package's may fail in any way; the list must still print
        told = f"{COMMANDS.where(name)} can't be loaded: {type(error).__name__}: {error}"
        found = typer.Typer(add_completion=False, **LOOK)
        found.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(_broken(told))
        command = get_command(found)
    command.name = name.rpartition(".")[2]
    return command


def _made(found: Any, brief: bool) -> Any:
    if not isinstance(found, typer.Typer):
        if not callable(found):
            raise TypeError(f"{found!r} is no function")
        function = _described(found.__doc__) if brief else reporting(found)
        found = typer.Typer(add_completion=False, **LOOK)
        found.command()(function)
    return get_command(found)


def _path(ctx: Any) -> str:
    """Return how a group is called below the program: "", "train"."""
    names = []
    while ctx.parent is not None:
        names.append(ctx.info_name)
        ctx = ctx.parent
    return ".".join(reversed(names))


def group(about: str) -> typer.Typer:
    """Return a group of commands, to be registered; they are registered below its name."""
    made = typer.Typer(cls=Group, add_completion=False, **LOOK)
    made.callback(help=about)(lambda: None)
    return made


def _described(about: str | None) -> Callable[[], None]:
    def described() -> None:
        pass

    described.__doc__ = about
    return described


def _broken(why: str) -> Callable[[], None]:
    def broken() -> None:
        raise GuardError(f"{why}. Update or uninstall the package that it is from.")

    broken.__doc__ = escape(why)
    return reporting(broken)


app = typer.Typer(
    name="lvlm-guard",
    cls=Group,
    help="Vision-language models that say less of what is not in the picture. Start with: lvlm-guard demo",
    context_settings={"help_option_names": ["-h", "--help"]},
    **LOOK,
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
