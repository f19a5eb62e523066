"""The two kinds of rows, and what may stand in them.

Caption row:
    {"image": "a.jpg", "caption": "a green-eyed cat", "category": "Sphynx", "meta": "cat",
     "attributes": {"eyes": "green"}, "negatives": ["a blue-eyed cat"], "kinds": ["eyes"], "split": "train"}
Value row:
    {"image": "a.jpg", "object": "horse", "value": 3, "weight": 1.0, "split": "train"}

Only image and caption, or image, object and value, must be there; any other key is an error, so that a misspelled one
is found. `kinds` says what was exchanged in each negative, so that figures can be given by kind. A value of null means
that it isn't known although the file's header calls the object exhaustive (a crowd that nobody counted).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from lvlm_guard.adapters.data.errors import DataError
from lvlm_guard.errors import did_you_mean

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """A caption of a picture.

    Args:
        image: the picture's key in its store; in a file, its path from the file's folder.
        caption: a true one.
        category: of what it is about; pairs of one category weigh more in DCAR's loss.
        meta: the kind of thing the category belongs to, within which categories are exchanged.
        attributes: kind -> value, of what the caption says.
        negatives: captions that are not true of the picture.
        kinds: what was exchanged in each negative; empty where nobody says.
        split: one of `SPLITS`, or None.
    """

    image: str
    caption: str
    category: str | None = None
    meta: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    negatives: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    split: str | None = None


@dataclass(frozen=True, slots=True)
class RankRow:
    """How much of something a picture shows.

    Args:
        image: the picture's key in its store; in a file, its path from the file's folder.
        object: what the value is of.
        value: a count, bin or score; None: not known, also where absence would mean 0.
        weight: how often the row is drawn, next to others of its object; None: the rarer its value, the more often.
        split: one of `SPLITS`, or None.
    """

    image: str
    object: str
    value: float | None
    weight: float | None = None
    split: str | None = None


Row = TypeVar("Row", CaptionRow, RankRow)


def caption_row(found: Any, where: str) -> CaptionRow:
    """Return a parsed line as a row; `where` names the line in messages.

    Raises:
        DataError: a key is unknown or missing, or holds what it must not.
    """
    given = _keys(found, CaptionRow, where)
    for name in ("image", "caption", "category", "meta"):
        if given.get(name) is not None or name in ("image", "caption"):
            given[name] = _text(given[name], name, where)
    attributes = given.get("attributes") or {}
    if not isinstance(attributes, Mapping) or not all(isinstance(x, str) for pair in attributes.items() for x in pair):
        raise DataError(f'{where}: "attributes" must be an object of texts, {{"colour": "red"}}; got {attributes!r}.')
    given["attributes"] = dict(attributes)
    for name in ("negatives", "kinds"):
        listed = given.get(name) or ()
        if isinstance(listed, str) or not isinstance(listed, Iterable):
            raise DataError(f'{where}: "{name}" must be a list of texts, also if it is one; got {listed!r}.')
        given[name] = tuple(_text(value, name, where) for value in listed)
    if given["kinds"] and len(given["kinds"]) != len(given["negatives"]):
        raise DataError(
            f'{where}: {len(given["kinds"])} "kinds" for {len(given["negatives"])} "negatives": give one for each, '
            "or none."
        )
    return CaptionRow(**given)


def rank_row(found: Any, where: str) -> RankRow:
    """Return a parsed line as a row; `where` names the line in messages.

    Raises:
        DataError: a key is unknown or missing, or holds what it must not.
    """
    given = _keys(found, RankRow, where)
    for name in ("image", "object"):
        given[name] = _text(given[name], name, where)
    if given["value"] is not None:
        given["value"] = number(given["value"], "value", where)
    if given.get("weight") is not None:
        given["weight"] = number(given["weight"], "weight", where)
    if given.get("weight") is not None and given["weight"] <= 0:
        raise DataError(f'{where}: "weight" is {given["weight"]:g}; it says how often a row is drawn: more than 0.')
    return RankRow(**given)


def number(found: Any, name: str, where: str) -> float:
    """Return a finite number, also one written as text; raises `DataError`."""
    try:
        value = float(found) if not isinstance(found, bool) else math.nan
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f'{where}: "{name}" must be a finite number; got {found!r}.')
    return value


def as_json(row: CaptionRow | RankRow) -> str:
    """Return a row as its line, without what is left at its default."""
    kept = {}
    for item in fields(row):
        value = getattr(row, item.name)
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        if value != default:
            kept[item.name] = int(value) if isinstance(value, float) and value.is_integer() else value
    return json.dumps(kept, ensure_ascii=False)


def _keys(found: Any, kind: type[CaptionRow] | type[RankRow], where: str) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise DataError(f"{where}: a row is a JSON object in braces; got {str(found)[:60]!r}.")
    names = [item.name for item in fields(kind)]
    needed = [item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING]
    for name in found:
        if name not in names:
            raise DataError(
                f"{where}: no row has a {name!r}. {did_you_mean(str(name), names)}Keys: {', '.join(names)}. Other "
                "columns must be left out, so that a misspelled one is found."
            )
    missing = [name for name in needed if name not in found or (found[name] is None and name != "value")]
    if missing:
        raise DataError(
            f"{where}: {' and '.join(repr(name) for name in missing)} missing. Found: {', '.join(map(str, found))}."
        )
    split = found.get("split")
    if split is not None and split not in SPLITS:
        raise DataError(f"{where}: the split is {split!r}; it is one of {', '.join(SPLITS)}, or left out.")
    return dict(found)


def _text(found: Any, name: str, where: str) -> str:
    if not isinstance(found, str) or not found.strip():
        raise DataError(f'{where}: "{name}" must be a text with something in it; got {found!r}.')
    return found.strip()
