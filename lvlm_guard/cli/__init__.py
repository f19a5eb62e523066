"""The command line: parse, call, print. One file a command; other rooms are loaded by name.

Nothing here imports torch or transformers before a command needs them, so `--help` is quick.

- `console`: output, errors and their exit codes, progress, the JSON object.
- `settings`: a command's options come from the dataclasses that it hands on.
- `options`: options that several commands share.
- `app`: the list of commands.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `lvlm-guard`; exits with 0 done, 1 failed, 2 wrong usage, 3 a void evaluation, 130 stopped by Ctrl-C."""
    from lvlm_guard.cli.app import app

    app(args=list(sys.argv[1:] if arguments is None else arguments), prog_name="lvlm-guard")


__all__ = ["main"]
