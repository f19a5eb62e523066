"""The items where decoders disagree, each with its pictures, relevance maps and every answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lvlm_guard.evals.report.disagreement import STANDINGS, Disagreement, Judged, Shown, Standing
from lvlm_guard.evals.report.evidence import INDEX
from lvlm_guard.report.pictures import data_address

HEADINGS = {"broken": "Broken by", "fixed": "Fixed by", "unreadable": "Unreadable with", "changed": "Changed by"}
SIGNS = {"right": "✓", "wrong": "✗", "unreadable": "?"}
Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Gallery:
    """What a task's gallery shows."""

    place: str  # a name for the page's own ids
    names: Sequence[str]  # the watched decoders
    found: Disagreement
    entries: Mapping[str, Entry]  # key -> what was collected of an item
    folder: Path  # of the collected pictures
    about: str  # what the maps are

    @property
    def standings(self) -> list[Standing]:
        """The outcomes that there are."""
        return [standing for standing in STANDINGS if any(other == standing for _, other in self.found.counts)]

    @property
    def shown(self) -> list[Shown]:
        """The items that are shown, what a method broke first."""
        return sorted(self.found.shown, key=lambda one: one.rank)

    def here(self, name: str, standing: Standing) -> int:
        """Return how many items of an outcome are shown."""
        return sum(one.standings.get(name) == standing for one in self.found.shown)

    def figures(self, one: Shown) -> Iterator[tuple[str, str, str, tuple[int, int]]]:
        """Yield title, caption, data address and size of an item's pictures; a file that is gone is left out."""
        for view in self.entries.get(one.key, {}).get("views", ()):
            kept = f", {view['kept']:.0%} kept" if view.get("kept") is not None else ""
            wanted = {"picture": "Picture", "map": "Relevance", "local": f"Local view{kept}"}
            for what, title in {**wanted, "sought_map": f"Map of “{view.get('sought', '')}”"}.items():
                path = self.folder / Path(view.get(what) or "none").name
                if path.is_file():
                    with Image.open(path) as opened:
                        yield title, view.get("note", "") if what == "map" else "", data_address(path), opened.size


def galleries(found: Mapping[str, Disagreement], names: Sequence[str], folder: Path) -> dict[str, Gallery]:
    """Return the gallery of each task where decoders disagree, with what was collected in the folder, if anything."""
    about, entries = "", dict[tuple[str, str], Entry]()
    with suppress(OSError, ValueError, KeyError, TypeError):
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        about, entries = str(index["maps"]), {(entry["task"], entry["key"]): entry for entry in index["items"]}
    made = {}
    for number, (task, own) in enumerate(found.items()):
        if own.shown:
            collected = {key: entry for (of, key), entry in entries.items() if of == task}
            made[task] = Gallery(f"pictures-{number}", names, own, collected, folder, about)
    return made


def heading(one: Shown) -> str:
    """Return an item's heading: "Broken by agla; fixed by vote"."""
    by = {standing: [name for name, its in one.standings.items() if its == standing] for standing in STANDINGS}
    told = [f"{HEADINGS[standing]} {', '.join(names)}" for standing, names in by.items() if names]
    return "; ".join([told[0], *(part[0].lower() + part[1:] for part in told[1:])])


def alike(said: Sequence[Judged]) -> list[tuple[str, Judged]]:
    """Return answers that differ, each with the seeds that gave it ("" where all did)."""
    same: dict[tuple[str, bool], list[int]] = {}
    for seed, one in enumerate(said):
        same.setdefault((one.text, one.ended), []).append(seed)
    return [("seed " + ", ".join(map(str, s)) + ": " if len(same) > 1 else "", said[s[0]]) for s in same.values()]


def sign(said: Sequence[Judged]) -> tuple[str, str]:
    """Return a decoder's answers as a sign ("✓", "✗", "?", or how many absent objects) and what it means."""
    if said and said[0].caption is not None:
        absent = max(-(one.merit or 0.0) for one in said)
        return (f"✗ {absent:g}", "wrong") if absent else ("✓", "right")
    worst = next((mark for mark in ("unreadable", "wrong", "right") if mark in [one.mark for one in said]), "")
    return SIGNS.get(worst, ""), worst
