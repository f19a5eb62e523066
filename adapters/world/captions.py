"""Captions of the world's pictures, each with four that are wrong, by what was exchanged in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lvlm_guard.adapters.data.facts import CaptionRow
from lvlm_guard.adapters.world.pictures import plan
from lvlm_guard.adapters.world.words import COLOURS, META_OF, METAS, MOST, NUMBERS, Group, listing

KINDS = ("category", "colour", "number", "exchange")
"""An object by another of its kind; a colour or number by another; two objects' colours by each other."""

SIZES = {"train": 4000, "val": 500, "test": 1000}
"""Pictures of a split, one caption each, where nobody says how many."""


def row(split: str, index: int) -> CaptionRow:
    """Return the caption of picture `index` of a split; raises `UnknownNameError`."""
    groups = plan("captions", split, index).groups
    rng = np.random.default_rng((index, len(split), 1))
    said = [groups[int(k)] for k in rng.permutation(len(groups))]
    first = said[0]
    attributes = {"number": NUMBERS[first.count]} | ({"colour": first.colour} if first.colour else {})
    wrong = _swaps(rng, said)
    return CaptionRow(
        image=f"captions/{split}/{index}",
        caption=_told(said),
        category=first.name,
        meta=META_OF[first.name],
        attributes=attributes,
        negatives=tuple(text for _, text in wrong),
        kinds=tuple(kind for kind, _ in wrong),
        split=split if split in SIZES else None,
    )


def _told(groups: Sequence[Group]) -> str:
    return listing([group.phrase() for group in groups])


def _swaps(rng: np.random.Generator, said: Sequence[Group]) -> list[tuple[str, str]]:
    """Return (kind, caption), one of every kind that these groups allow, filled up to four with category swaps."""
    made: list[tuple[str, str]] = []
    while len(made) < len(KINDS):
        kind = KINDS[len(made)]
        text = _swapped(rng, said, kind)
        if text is None:
            kind, text = "category", _swapped(rng, said, "category")
        if text is not None and text not in {other for _, other in made}:
            made.append((kind, text))
    return made


def _swapped(rng: np.random.Generator, said: Sequence[Group], kind: str) -> str | None:
    groups = list(said)
    if kind == "exchange":
        return _exchanged(rng, groups)
    able = [k for k, group in enumerate(groups) if kind != "colour" or group.colour]
    if not able:
        return None
    k = able[int(rng.integers(len(able)))]
    group = groups[k]
    if kind == "category":
        names = [name for name in METAS[META_OF[group.name]] if name not in {other.name for other in said}]
        groups[k] = replace(group, name=_pick(rng, names))
    elif kind == "colour":
        groups[k] = replace(group, colour=_pick(rng, [colour for colour in COLOURS if colour != group.colour]))
    else:
        groups[k] = replace(group, count=int(_pick(rng, [str(n) for n in range(1, MOST + 1) if n != group.count])))
    return _told(groups)


def _exchanged(rng: np.random.Generator, groups: list[Group]) -> str | None:
    """Exchange the colours of two groups: the same words, a different picture."""
    pairs = [
        (a, b)
        for a in range(len(groups))
        for b in range(a)
        if groups[a].colour and groups[b].colour and groups[a].colour != groups[b].colour
    ]
    if not pairs:
        return None
    a, b = pairs[int(rng.integers(len(pairs)))]
    groups[a], groups[b] = replace(groups[a], colour=groups[b].colour), replace(groups[b], colour=groups[a].colour)
    return _told(groups)


def _pick(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]
