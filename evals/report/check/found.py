"""What a check of a folder found, in sentences."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lvlm_guard

SHOWN = 3  # examples of a finding


@dataclass(frozen=True)
class Checked:
    """What a check found in a folder that one of two programs wrote, in sentences."""

    folder: Path
    kind: Literal["lvlm-guard", "lmms-eval"]
    good: list[str] = field(default_factory=list)  # what is as it should be
    warnings: list[str] = field(default_factory=list)  # what to know before reading the scores
    wrong: list[str] = field(default_factory=list)  # files that were changed, cut or mixed (exit code 1)
    void: list[str] = field(default_factory=list)  # answers that can't be scored (exit code 3)

    @property
    def outcome(self) -> Literal["ok", "wrong", "void"]:
        """The worst of it: answers that can't be scored before files that don't fit."""
        return "void" if self.void else "wrong" if self.wrong else "ok"

    def to_dict(self) -> dict[str, Any]:
        """Return what was found as JSON data."""
        told = {"command": "eval check", "version": lvlm_guard.__version__, "outcome": self.outcome}
        return told | vars(self) | {"folder": str(self.folder)}


def sentences(found: Checked) -> list[str]:
    """Return what was found as lines to print, the worst first."""
    parts = {"void": found.void, "wrong": found.wrong, "note": found.warnings, "ok": found.good}
    return [f"{kind}: {told}" for kind, sentences in parts.items() for told in sentences]
