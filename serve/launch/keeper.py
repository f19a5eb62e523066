"""Ends process groups when the process that started it is gone, however it went; imports nothing of ours.

Its standard input is a pipe that the starter alone holds open. A line "+GROUP" or "-GROUP" adds a group or takes it
away, "/FOLDER" names a folder; at the pipe's end, which even SIGKILL of the starter brings about, groups that are left
are killed and folders that are left removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys


def main() -> None:
    """Keep until standard input ends."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    groups: set[int] = set()
    folders: list[str] = []
    for line in sys.stdin:
        if line.startswith("/"):
            folders.append(line.removesuffix("\n"))
        else:
            (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
