"""How rows are answered: options of `lvlm-guard batch`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from typer import Option

from lvlm_guard.cli.options import Adapter, Dtype, Execution, MaxNewTokens, Method, Model


@dataclass(frozen=True)
class How:
    """How rows are answered; decides the answers together with the rows. Knobs are those that are not the defaults."""

    model: Model = "embedded"
    method: Method = "agla"
    knobs: dict[str, Any] = field(default_factory=dict)
    prompt: Annotated[str, Option(help="Asked where a row has no prompt.", metavar="TEXT")] = ""
    max_new_tokens: MaxNewTokens = 64
    batch: Annotated[int, Option(min=1, help="Rows in one call.")] = 16
    adapter: Adapter = None
    dtype: Dtype = "auto"
    execution: Execution = "auto"
    server: Annotated[str, Option(help="Ask a server, whose plain name is --model, instead.", metavar="URL")] = ""
    revision: str | None = None
