"""The JSON file that says, beside PEFT's own, what an adapter's folder needs to be used rightly."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lvlm_guard.errors import GuardError, WeightsError

FORMAT = 1

T = TypeVar("T")


def write_card(folder: str | os.PathLike[str], file: str, told: Mapping[str, Any]) -> Path:
    """Write a card's file, whole or not at all; return its path."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    part = place / f"{file}.part"
    part.write_text(json.dumps({"format": FORMAT, **told}, indent=2, allow_nan=False) + "\n", "utf-8")
    return part.replace(place / file)


def read_card(
    folder: str | os.PathLike[str], file: str, known: Collection[str], make: Callable[[dict[str, Any]], T], kind: str
) -> T:
    """Read a card's file.

    Args:
        folder: where it lies.
        file: its name.
        known: fields that it may hold.
        make: makes the card from what it holds.
        kind: what the folder is of, as `lvlm-guard train` calls it.

    Raises:
        WeightsError: it is missing or damaged, or of another release.
    """
    path = Path(folder) / file
    try:
        told: dict[str, Any] = json.loads(path.read_text("utf-8"))
        form = told.pop("format")
        unknown = set(told) - set(known)
        if form != FORMAT or unknown:
            raise WeightsError(
                f"{path} is of format {form} with the unknown fields {sorted(unknown)}; this release reads format "
                f"{FORMAT}. Update lvlm-guard, or train the adapter again."
            )
        return make(told)
    except FileNotFoundError as error:
        raise WeightsError(
            f"{str(folder)!r} is no folder of a {kind}: {file} is missing. Give the folder that "
            f"`lvlm-guard train {kind}` wrote."
        ) from error
    except WeightsError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, GuardError) as error:
        raise WeightsError(
            f"{path} is damaged ({type(error).__name__}: {error}). Copy the folder again, or train again."
        ) from error


def pair(value: Any) -> tuple[float, float] | None:
    """Return two numbers that JSON holds as a list, or None."""
    if value is None:
        return None
    a, b = value
    return float(a), float(b)
