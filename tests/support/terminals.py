"""Tables as a terminal shows them."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console


def printed(tables: list[Any], width: int) -> str:
    text = io.StringIO()
    console = Console(file=text, width=width, color_system=None)
    for table in tables:
        console.print(table)
    return text.getvalue()
