"""Files of captions, as CHAIR's scorer takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lvlm_guard.evals.metrics.chair import image_id
from lvlm_guard.evals.spec import jsonl


def read_captions(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines with "image_id" and "caption"."""
    rows = jsonl.read(path, ("image_id", "caption"), unique=("image_id",))
    return [{"image_id": image_id(row["image_id"]), "caption": row["caption"]} for _, row in rows]
