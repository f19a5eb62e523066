"""`lvlm-guard train`, whose commands are registered as `train.NAME`, and `train presets`."""

from __future__ import annotations

from importlib import import_module

from rich.markup import escape
from rich.table import Table

from lvlm_guard.cli.app import group
from lvlm_guard.cli.console import out, print_json
from lvlm_guard.cli.options import Json

training = group(
    "Train small parts: PEFT adapters of a matcher, or of the model itself.\n\n"
    "[bold]Example:[/bold] lvlm-guard train distill --out distilled"
)


def presets(json: Json = False) -> None:
    """List published works that can be trained by name, and what of them is not exact.

    [bold]Example:[/bold] lvlm-guard train claims --preset promptsrc --data facts.jsonl
    """
    from lvlm_guard.cli.trained import ready

    ready()
    rows = [one.to_dict() for one in import_module("lvlm_guard.adapters.presets").PRESETS.values()]
    if json:
        print_json("train presets", rows)
        return
    shown = Table("preset", "row", "arXiv", "pieces", "paper", "lacks", box=None)
    for row in rows:
        number = "" if row["row"] is None else str(row["row"])
        shown.add_row(*map(escape, (row["name"], number, row["identifier"], row["piece"], row["paper"], row["lacks"])))
    out().print(shown)
