"""The items where decoders disagree, each with its pictures, relevance maps and every answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lvlm_guard.evals.report.disagreement import STANDINGS, Disagreement, Judged, Shown, Standing
from lvlm_guard.evals.report.evidence import INDEX
from lvlm_guard.report.pictures import data_address

HEADINGS = {
    "broken": "Broken by",
    "fixed": "Fixed by",
    "unreadable": "Unreadable with",
    "changed": "Changed by",
}
MEANINGS = {
    "broken": "{reference} was better",
    "fixed": "better than {reference}",
    "unreadable": "neither yes nor no was read, here or in {reference}'s answer",
    "changed": "names other objects of the picture, or answers otherwise where only the task can judge",
}
Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A picture of the page: its title, a caption, a data address, and its size in pixels."""

    title: str
    caption: str
    address: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Gallery:
    """What a task's gallery shows.

    Args:
        place: a name for the page's own ids.
        names: the watched decoders.
        standings: the outcomes that there are.
        found: what became of all items.
        shown: those that are shown, what a method broke first.
        entries: key -> what was collected of an item.
        folder: of the collected pictures.
        about: what the maps are; "" where none were collected.
    """

    place: str
    names: Sequence[str]
    standings: Sequence[Standing]
    found: Disagreement
    shown: Sequence[Shown]
    entries: Mapping[str, Entry]
    folder: Path
    about: str

    def of(self, one: Shown) -> str:
        """Return the classes by which the filters of an item go."""
        return " ".join(f"of-{self.names.index(name)}-{standing}" for name, standing in one.standings.items())

    def here(self, name: str, standing: Standing) -> int:
        """Return how many items of an outcome are shown."""
        return sum(one.standings.get(name) == standing for one in self.shown)

    def rules(self) -> str:
        """Return the style rules of the filters, which need no script."""
        return "\n".join(
            f"#{self.place}:has(#{self.place}-{n}-{standing}:checked) .example:not(.of-{n}-{standing}) "
            "{ display: none; }"
            for n in range(len(self.names))
            for standing in self.standings
        )

    def figures(self, one: Shown) -> list[Figure]:
        """Return the pictures of an item; a file that is gone is left out."""
        return [
            figure for view in self.entries.get(one.key, {}).get("views", ()) for figure in _figures(view, self.folder)
        ]


def read_evidence(folder: Path) -> tuple[str, dict[tuple[str, str], Entry]]:
    """Return what the maps are, and the entries by task and key; nothing where no evidence was collected."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return str(index["maps"]), {(entry["task"], entry["key"]): entry for entry in index["items"]}
    except (OSError, ValueError, KeyError, TypeError):
        return "", {}


def galleries(
    found: Mapping[str, Disagreement], tasks: Sequence[str], names: Sequence[str], folder: Path
) -> dict[str, Gallery]:
    """Return the gallery of each task where decoders disagree."""
    about, entries = read_evidence(folder)
    made = {}
    for number, task in enumerate(tasks):
        if found[task].shown:
            own = {key: entry for (of, key), entry in entries.items() if of == task}
            there = [s for s in STANDINGS if any(standing == s for _, standing in found[task].counts)]
            shown = sorted(found[task].shown, key=lambda one: one.rank)
            made[task] = Gallery(
                f"pictures-{number}", names, there, found[task], shown, own, folder, about if own else ""
            )
    return made


def heading(one: Shown) -> str:
    """Return an item's heading: "Broken by agla; fixed by vote"."""
    parts = []
    for standing in STANDINGS:
        by = [name for name, its in one.standings.items() if its == standing]
        if by:
            parts.append(f"{HEADINGS[standing]} {', '.join(by)}")
    return "; ".join([parts[0], *(part[0].lower() + part[1:] for part in parts[1:])])


def alike(said: Sequence[Judged]) -> list[tuple[str, Judged]]:
    """Return answers that differ, each with the seeds that gave it ("" where all did)."""
    same: dict[tuple[str, bool], list[int]] = {}
    for seed, one in enumerate(said):
        same.setdefault((one.text, one.ended), []).append(seed)
    return [("seed " + ", ".join(map(str, s)) + ": " if len(same) > 1 else "", said[s[0]]) for s in same.values()]


def sign(said: Sequence[Judged]) -> tuple[str, str]:
    """Return a decoder's answers as a sign ("✓", "✗", "?", or how many absent objects) and what it means."""
    if not said:
        return "", ""
    if said[0].caption is not None:
        absent = max(-(one.merit or 0.0) for one in said)
        return (f"✗ {absent:g}", "wrong") if absent else ("✓", "right")
    marks = [one.mark for one in said]
    worst = next((mark for mark in ("unreadable", "wrong", "right") if mark in marks), "")
    return {"right": "✓", "wrong": "✗", "unreadable": "?"}.get(worst, ""), worst


def _figures(view: Entry, folder: Path) -> list[Figure]:
    kept = f", {view['kept']:.0%} kept" if view.get("kept") is not None else ""
    wanted = (
        ("picture", "Picture", ""),
        ("map", "Relevance", view.get("note", "")),
        ("local", f"Local view{kept}", ""),
        ("sought_map", f"Map of “{view.get('sought', '')}”", ""),
    )
    found = []
    for what, title, caption in wanted:
        path = folder / Path(view.get(what) or "none").name
        if path.is_file():
            with Image.open(path) as opened:
                found.append(Figure(title, caption, data_address(path), opened.size))
    return found
