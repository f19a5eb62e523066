"""`lvlm-guard methods`."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from rich.markup import escape
from rich.table import Table

from lvlm_guard.cli.console import out, print_json
from lvlm_guard.cli.options import Json
from lvlm_guard.errors import MissingExtraError

TITLES = {"method": "Methods", "matcher": "Matchers", "family": "Model families"}

ASIDE = ("experimental", "parity")
ABOUT = ("cost", "paper", *ASIDE)
NOTHING: dict[str, Any] = {"does": "", "knobs": {}, "model_types": [], "changes": "", "cost": "", "paper": ""}
NOTHING |= dict.fromkeys(ASIDE, False) | {"error": None, "off": False}


def methods(json: Json = False) -> None:
    """List the methods, matchers and model families that were found, and where.

    Another package brings one by an entry point (lvlm_guard.methods, .matchers, .families).

    [bold]Example:[/bold] lvlm-guard methods --json
    """
    rows = found()
    if json:
        print_json("methods", rows)
        return
    for kind in TITLES:
        table = Table(title=TITLES[kind], title_justify="left")
        about = ("changes", "cost", "source") if kind == "method" else ()
        for column in ("name", "what it does", *about, "model types" if kind == "family" else "knobs", "where"):
            table.add_column(column, overflow="fold")
        for row in rows:
            if row["kind"] == kind:
                shown = row["error"] or row["does"]
                knobs = ", ".join(f"{k}={v!r}" for k, v in row["knobs"].items()) or ", ".join(row["model_types"])
                told = [row["changes"], row["cost"], row["paper"]] if kind == "method" else []
                called = row["name"] + "".join(f" ({why})" for why in ASIDE if row[why])
                table.add_row(called, *map(escape, (shown, *told, knobs, row["where"])))
        out().print(table)


def found() -> list[dict[str, Any]]:
    """Return every registered name: kind, name, where, what it does, knobs; of a method what it changes ("logits",
    "pictures", "cache"), its cost, its paper and whether it is an experiment, or a release with its defects; the error
    if it can't be loaded, and whether it merely is off, for want of an optional package.
    """
    from lvlm_guard import families, matching
    from lvlm_guard import methods as decoding

    rows = []
    for registry in (decoding.REGISTRY, matching.REGISTRY, families.REGISTRY):
        for name in registry.names():
            rows.append(row := {"kind": registry.kind, "name": name, "where": registry.where(name)} | NOTHING)
            try:
                thing = registry.get(name)
            except MissingExtraError as missing:
                row |= {"error": f"not installed: {missing}", "off": True}
                continue
            except Exception as error:  # another package's module may fail in any way; the list must still print
                row["error"] = f"can't be loaded: {type(error).__name__}: {error}"
                continue
            row["does"] = _first_line(thing)
            if registry is decoding.REGISTRY:
                row |= {"changes": thing.changes()} | {key: getattr(thing, key) for key in ABOUT}
            row["model_types"] = [name] if registry.kind == "family" else []
            if dataclasses.is_dataclass(thing):
                row["knobs"] = {field.name: _told(field.default) for field in dataclasses.fields(thing) if field.init}
    return rows


def _first_line(thing: Any) -> str:
    """Return what the thing's module says of itself: one file tells one method."""
    module = inspect.getmodule(thing)
    told = (module.__doc__ if module else None) or inspect.getdoc(thing) or ""
    return told.strip().split("\n")[0]


def _told(default: Any) -> Any:
    if default is dataclasses.MISSING:
        return None
    return default if isinstance(default, str | int | float | bool | None) else str(default)
