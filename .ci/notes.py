"""Print what CHANGELOG.md says of the version that the package has; refuse a tag of another version.

python .ci/notes.py [vX.Y.Z]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def version(root: Path = ROOT) -> str:
    """Return the package's version, as `lvlm_guard/__init__.py` has it."""
    text = (root / "lvlm_guard" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if found is None:
        raise SystemExit('lvlm_guard/__init__.py holds no line __version__ = "X.Y.Z".')
    return found[1]


def notes(changes: str, wanted: str) -> str:
    """Return the entries of one version.

    Args:
        changes: the text of CHANGELOG.md, whose versions are headings such as `## 0.2.0 (2026-12-01)`.
        wanted: the version, or "Unreleased".

    Raises:
        SystemExit: there is no such heading, or nothing under it.
    """
    parts = re.split(r"^## +(.+?) *$", changes, flags=re.MULTILINE)
    said = {heading.split()[0]: text.strip() for heading, text in zip(parts[1::2], parts[2::2], strict=True)}
    if not said.get(wanted):
        raise SystemExit(
            f"CHANGELOG.md says nothing of {wanted}; it has {', '.join(said) or 'no version'}. Give the entries under "
            f"Unreleased a heading of their own: ## {wanted} (date)."
        )
    return said[wanted]


def main(tag: str = "") -> None:
    """Print the notes of a tag, or of what is not released yet.

    Raises:
        SystemExit: the tag is not the package's version.
    """
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if tag and tag != f"v{version()}":
        raise SystemExit(f"The tag is {tag}, the package is {version()}: see docs/release.md.")
    print(notes(changes, version() if tag else "Unreleased"))


if __name__ == "__main__":
    main(*sys.argv[1:])
