"""How the commands show what they found, and the code that they leave with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text

from lvlm_guard import __version__
from lvlm_guard.cli.console import FAILED, VOID, err, out, print_object, usage
from lvlm_guard.errors import GuardError

FailIf = Annotated[
    tuple[str, ...],
    typer.Option("--fail-if", help="Exit 1 where it holds, e.g. 'accuracy_diff<-0.01'. Repeatable."),
]


def tell(
    command: str,
    json: bool,
    found: Mapping[str, Any] | None = None,
    parts: Iterable[RenderableType] = (),
    /,
    **places: Path | Sequence[Path],
) -> None:
    """Print what a command found: its tables and sentences, and where files are; with `json` one object instead, which
    without `found` is where files are."""
    if json:
        paths = {what: str(p) if isinstance(p, Path) else [*map(str, p)] for what, p in places.items()}
        print_object({"command": command, "version": __version__, **(paths if found is None else found)})
        return
    shown = out()
    for part in parts:
        shown.print(Text(part) if isinstance(part, str) else part)
    for what, place in places.items():
        for path in [place] if isinstance(place, Path) else place:
            shown.print(f"{what}  {escape(str(path))}", soft_wrap=True)


def told(results: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield a run's tables and what they say; a void run has none."""
    from lvlm_guard.evals.report.terminal import sentences, tables

    yield from tables(results, out().width)
    yield from sentences(results)
    for sentence in (*results["warnings"], *results.get("flags", ())):
        yield Text(f"note: {sentence}", "yellow")


def end(command: str, results: Mapping[str, Any], rules: Sequence[Any], json: bool, **places: Path) -> None:
    """Print a run's results, and leave with the code that they deserve."""
    rows = [{"method": row["decoder"], **row} for row in results["rows"]]
    tell(command, json, {**results, "rows": rows}, told(results), **places)
    leave(results, rules)


def leave(results: Mapping[str, Any], rules: Sequence[Any] = ()) -> None:
    """Leave with the code that results deserve: 3 where they are void, 1 where a rule holds."""
    if results.get("void"):
        console = err()
        console.print("[bold red]Void:[/] nothing was scored, for the scores would mislead.")
        for reason in results["void"]:
            console.print(escape(f"  {reason}"))
        raise typer.Exit(VOID)
    held = [found for rule in rules if (found := rule(results["rows"]))]
    for sentence in held:
        err().print(f"[bold red]--fail-if:[/] {escape(sentence)}")
    if held:
        raise typer.Exit(FAILED)


def rules_of(texts: Sequence[str]) -> list[Any]:
    """Read the rules of --fail-if."""
    from lvlm_guard.evals.report.fail_if import fail_if

    try:
        return [fail_if(text) for text in texts]
    except GuardError as error:
        raise usage(f"--fail-if: {error}") from None
