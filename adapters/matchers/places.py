"""Where the adapter of a matcher's name lies for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lvlm_guard.adapters.embedded import ADAPTERS
from lvlm_guard.errors import WeightsError


def place_for(name: str, model: Any, otherwise: str | None = None) -> str:
    """Return the folder or hub id that a matcher's name stands for.

    A model's config may say it, `lvlm_guard: {"dual-prompt": "owner/adapter"}`, also as a folder beside the model; the
    embedded model has those of this package.

    Args:
        name: of the matcher.
        model: that it will guard; None where it is not known.
        otherwise: what it stands for with any other model; None for nothing.

    Raises:
        WeightsError: nothing says which adapter is meant.
    """
    config = getattr(getattr(model, "config", None), "lvlm_guard", None) or {}
    told = config.get(name)
    if told is not None:
        beside = Path(getattr(model, "name_or_path", "") or ".") / str(told)
        return str(beside) if beside.is_dir() else str(told)
    if str(config.get("matcher", "")).startswith("."):  # the embedded model, or a copy of it
        return str(ADAPTERS / name)
    if otherwise is not None:
        return otherwise
    raise WeightsError(
        f"Which {name} adapter is meant? Train one, `lvlm-guard train {name} --data ... --out DIR`, and give its "
        f"folder in the place of the name: matcher=DIR. The embedded model has one of its own, `embedded-{name}`."
    )
