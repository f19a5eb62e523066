"""How a table names the machine of its figures."""

from __future__ import annotations

from typing import Any


def machine(environment: dict[str, Any]) -> str:
    """Name the machine and the versions, as the run recorded them."""
    told = {key: value for key, value in environment.items() if key not in ("commit", "matcher") and value}
    return ", ".join(f"{key} {value}" for key, value in told.items())
