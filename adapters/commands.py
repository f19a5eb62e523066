"""`lvlm-guard train`, whose commands are registered as `train.NAME`, `train presets`, and what all of them share."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from typer import Option

from lvlm_guard.cli.app import group
from lvlm_guard.cli.console import out, print_json, quiet_libraries, usage
from lvlm_guard.cli.options import Json
from lvlm_guard.cli.settings import COMMAS
from lvlm_guard.errors import MissingExtraError

training = group(
    "Train small parts: PEFT adapters of a matcher, or of the model itself.\n\n"
    "[bold]Example:[/bold] lvlm-guard train distill --out distilled"
)


def presets(json: Json = False) -> None:
    """List published works that can be trained by name, and what of them is not exact.

    [bold]Example:[/bold] lvlm-guard train claims --preset promptsrc --data facts.jsonl
    """
    ready()
    from lvlm_guard.adapters.presets import PRESETS

    rows = [one.to_dict() for one in PRESETS.values()]
    if json:
        print_json("train presets", rows)
        return
    shown = Table("preset", "row", "arXiv", "pieces", "paper", "lacks", box=None)
    for row in rows:
        number = "" if row["row"] is None else str(row["row"])
        shown.add_row(*map(escape, (row["name"], number, row["identifier"], row["piece"], row["paper"], row["lacks"])))
    out().print(shown)


def _configured(context: typer.Context, path: Path | None) -> Path | None:
    """Take a file's values for options that the command line does not give."""
    if path is None:
        return None
    import yaml

    known = {name.lstrip("-"): option for option in context.command.params for name in option.opts}
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(given, dict):
            raise ValueError("it holds no options, `steps: 500`")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise usage(f"--config {path} can't be read: {error}.") from None
    for name in given:
        if name not in known:
            raise usage(f"--config {path}: there is no option {name!r}. Options: {', '.join(known)}.")
    values = {known[name].name: _listed(known[name], value) for name, value in given.items()}
    context.default_map = {**(context.default_map or {}), **values}
    return path


def _listed(option: Any, value: Any) -> Any:
    """Return a file's value as the command line gives it: a list for an option that is repeated, else one text."""
    if getattr(option, "multiple", False):
        return value if value is None or isinstance(value, list) else [value]
    return ",".join(map(str, value)) if isinstance(value, list) else value


_CONFIG = "YAML file of options, by their long names."
Config = Annotated[Path | None, Option(help=_CONFIG, is_eager=True, callback=_configured, metavar="FILE")]

Seeds = Annotated[
    tuple[int, ...], COMMAS, Option("--seeds", "--seed", help="Of training, comma-separated: an adapter each.")
]


def ready() -> None:
    """Raise `MissingExtraError` where peft or accelerate is not installed; keep libraries quiet."""
    quiet_libraries()
    try:
        for name in ("peft", "accelerate"):
            import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"Training needs peft and accelerate ({error}). Install them: pip install 'lvlm-guard[train]'."
        ) from error


def print_report(report: dict[str, Any]) -> None:
    """Print what a training found as the one JSON object of its command."""
    rest = {key: value for key, value in report.items() if key not in ("command", "version", "environment", "rows")}
    print_json(report["command"], report["rows"], **rest)
