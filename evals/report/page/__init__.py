"""The report of a run: one HTML file, made from `run.json`, `samples.jsonl` and `evidence/` alone.

    write_report("runs/first")  # runs/first/report.html

It holds no script and no address outside itself, and is made without any model. Read in this order:

- `document`: what stands where.
- `scores`, `costs`, `charts`, `sweeps`: the figures.
- `gallery`, `replies`: the pictures where decoders disagree, and what each said.
- `repeat`: settings, versions, and the command that makes the run again.
"""

from __future__ import annotations

from pathlib import Path

from lvlm_guard.evals.errors import disk_trouble
from lvlm_guard.evals.report.page.document import document
from lvlm_guard.evals.report.saved import read_run
from lvlm_guard.report import write_page

REPORT = "report.html"


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into the folder of a run, whatever its status; returns its path.

    Raises:
        DataError: the folder holds no run, or a file of it can't be read.
        RunError: the file can't be written.
    """
    saved = read_run(folder)
    with disk_trouble(saved.folder):
        return write_page(saved.folder / REPORT, document(saved))


__all__ = ["REPORT", "write_report"]
