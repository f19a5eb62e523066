"""What has been agreed on about a data set's answers before the first one: which rows, answered how, in which files.

It stands in `plan.json` beside the answers. Whoever goes on, after a crash, on another day or on other machines, goes
on with just this or is refused: answers of two models in one folder would be nobody's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lvlm_guard
from lvlm_guard.batch.how import How
from lvlm_guard.batch.rows import KINDS, Piece, cut
from lvlm_guard.errors import KnobError
from lvlm_guard.files import whole

PLAN, DONE = "plan.json", "done.json"
_HEAD = 1 << 16  # bytes of a file that tell it from another one of its size


@dataclass(frozen=True)
class Plan:
    """See the module.

    Args:
        how: rows are answered.
        pieces: of all files, in order.
    """

    how: How
    pieces: tuple[Piece, ...]


def plan_of(given: Sequence[Path], out: Path, how: How, rows: int) -> Plan:
    """Return the plan of a folder of answers, which is made where there is none.

    Args:
        given: files, or folders whose files are read in order of their names.
        out: folder of the answers.
        how: they are made.
        rows: in one file of answers, at most.

    Raises:
        KnobError: the folder has another plan, or a file can't be read.
    """
    files = [str(file.resolve()) for file in _listed(given)]
    versions = {"lvlm-guard": lvlm_guard.__version__} | {name: version(name) for name in ("torch", "transformers")}
    identities = {file: _identity(file) for file in files}
    asked = json.loads(json.dumps({"how": asdict(how), "rows": rows, "files": identities, "versions": versions}))
    place = out / PLAN
    if place.exists():
        there = json.loads(place.read_text(encoding="utf-8"))
        pieces = there.pop("pieces")
        if changed := [name for name in asked if there.get(name) != asked[name]]:
            was = {name: there.get(name) for name in changed if name != "files"}
            raise KnobError(
                f"{out} holds answers with other {' and '.join(changed)}{f' ({was})' if was else ''}: give the same "
                "command to go on, or another --out."
            )
    else:
        # a plan that another process is writing, or was killed over, is no stranger's file
        if out.exists() and any(not file.name.endswith(".part") for file in out.iterdir() if file != place):
            raise KnobError(f"{out} is not empty and holds no {PLAN}: give a folder of its own.")
        cuts = [(file, *one) for file in files for one in cut(file, rows)]
        pieces = [asdict(Piece(number, *one)) for number, one in enumerate(cuts)]
        with whole(place, shared=True) as part:
            part.write_text(json.dumps(asked | {"pieces": pieces}), encoding="utf-8")
    return Plan(how, tuple(Piece(**piece) for piece in pieces))


def _listed(given: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for place in given:
        if place.is_dir():
            inside = sorted(file for file in place.iterdir() if file.suffix.lower() in KINDS)
            if not inside:
                raise KnobError(f"{place} has no file of {', '.join(KINDS)}.")
            found += inside
        elif place.is_file():
            found.append(place)
        else:
            raise KnobError(f"There is no {place}.")
    if len(set(found)) < len(found):
        raise KnobError("A file is given twice, so its rows would be answered twice.")
    return found


def _identity(file: str) -> list[Any]:
    with open(file, "rb") as opened:
        head = hashlib.sha256(opened.read(_HEAD)).hexdigest()[:16]
    return [Path(file).stat().st_size, head]
