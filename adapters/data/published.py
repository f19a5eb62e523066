"""What the converters of published layouts share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lvlm_guard.adapters.data.errors import DataError


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        DataError: there is no such file, or it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"There is no file {str(path)!r}.") from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}. It may be cut short.") from error
