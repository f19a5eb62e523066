"""A record of facts: what is known about a picture, and what is not.

One JSON object a line:

    {"image": "a.jpg", "captions": ["a red dog on a couch"],
     "objects": {"dog": 1, "cat": "absent", "person": "unknown", "tree": "present"},
     "attributes": {"dog": ["red"]}, "split": "train"}

Of an object is known how many there are, that there are some ("present"), or none ("absent", 0). What no line says is
unknown, and unknown is never false: only the file's header, {"exhaustive": ["dog", "cat"]}, makes a missing object
absent. An object may also be a quantity, {"age": 37.5}, under the header's "instruction". A caption may be an object
with its own category, kind of thing, attributes and negatives: {"text": ..., "category": ..., "negatives": [...]}.
Several lines may tell of one picture, as long as they don't contradict each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lvlm_guard.adapters.errors import DataError
from lvlm_guard.errors import did_you_mean

SPLITS = ("train", "val", "test")
PRESENT, ABSENT, UNKNOWN = "present", "absent", "unknown"
State = float | None
"""How many of an object a picture shows: a number, `SOME`, or None where it isn't known."""

SOME = math.inf
"""There are some, and nobody counted them."""

KEYS = ("image", "captions", "objects", "attributes", "weights", "split")
OF_CAPTION = ("text", "category", "meta", "attributes", "negatives", "kinds")


@dataclass(frozen=True, slots=True)
class CaptionRow:
    """A caption of a picture; `image` and `split` are those of `Facts`.

    Args:
        caption: a true one.
        category: of what it is about; pairs of one category weigh more in DCAR's loss.
        meta: the kind of thing the category belongs to, within which categories are exchanged.
        attributes: kind -> value, of what the caption says.
        negatives: captions that are not true of the picture.
        kinds: what was exchanged in each negative; empty where nobody says.
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
    """How much of something a picture shows; `image` and `split` are those of `Facts`.

    Args:
        object: what the value is of.
        value: a count, bin or score; None: not known, also where absence would mean 0.
        weight: how often the row is drawn, next to others of its object; None: the rarer its value, the more often.
    """

    image: str
    object: str
    value: float | None
    weight: float | None = None
    split: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about one picture.

    Args:
        image: its key in its store; in a file, its path from the file's folder.
        captions: true ones.
        objects: name -> how many, `SOME`, or None where it is said that nobody knows.
        attributes: object -> values that are true of one in the picture.
        weights: object -> how often the picture is drawn for it.
        split: one of `SPLITS`, or None.
    """

    image: str
    captions: tuple[CaptionRow, ...] = ()
    objects: Mapping[str, State] = field(default_factory=dict)
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    split: str | None = None


def facts_of(found: Any, where: str) -> Facts:
    """Return a parsed line as facts; raises `DataError`, which names `where`, if a key is unknown, missing or wrong."""
    given = known_keys(found, KEYS, where)
    image, split = _text(given.get("image"), "image", where), given.get("split")
    if split is not None and split not in SPLITS:
        raise DataError(f"{where}: the split is {split!r}; it is one of {', '.join(SPLITS)}, or left out.")
    captions = given.get("captions") or ()
    if isinstance(captions, str | Mapping) or not isinstance(captions, Iterable):
        raise DataError(f'{where}: "captions" must be a list, also if it is one; got {str(captions)[:60]!r}.')
    objects, attributes, weights = (_mapping(given, key, where) for key in ("objects", "attributes", "weights"))
    weights = {name: _number(value, f"weight of {name}", where) for name, value in weights.items()}
    if weights and min(weights.values()) <= 0:
        raise DataError(
            f"{where}: a weight is {min(weights.values()):g}; it says how often a picture is drawn: above 0."
        )
    return Facts(
        image,
        tuple(_caption(one, image, split, where) for one in captions),
        {name: _state(value, name, where) for name, value in objects.items()},
        {name: texts(values, f"attributes of {name}", where) for name, values in attributes.items()},
        weights,
        split,
    )


def merged(one: Facts, other: Facts, where: str) -> Facts:
    """Return what two lines tell of one picture; raises `DataError` where they contradict each other."""
    if one.split != other.split:
        raise DataError(
            f"{where}: the picture {one.image!r} is of the splits {one.split!r} and {other.split!r}. What is measured "
            "on a picture that was trained on says nothing: give all its lines one split."
        )
    objects = dict(one.objects)
    for name, state in other.objects.items():
        objects[name] = _agreed(objects.get(name), state, name, one.image, where)
    captions = {caption.caption: caption for caption in (*one.captions, *other.captions)}
    attributes = {
        name: tuple(dict.fromkeys((*one.attributes.get(name, ()), *other.attributes.get(name, ()))))
        for name in (*one.attributes, *other.attributes)
    }
    weights = {**one.weights, **other.weights}
    return replace(one, captions=tuple(captions.values()), objects=objects, attributes=attributes, weights=weights)


def _agreed(one: State, other: State, name: str, image: str, where: str) -> State:
    if one is None or other is None or one == other:
        return other if one is None else one
    if SOME in (one, other) and 0 not in (one, other):
        return min(one, other)  # a number says more than that there are some
    raise DataError(
        f"{where}: the picture {image!r} has {_told(one)!r} and {_told(other)!r} of {name!r}. Give one, or leave it "
        "out where nobody knows."
    )


def as_json(facts: Facts) -> str:
    """Return facts as their line, without what is left at its default."""
    told: dict[str, Any] = {"image": facts.image, "captions": [_caption_told(row) for row in facts.captions]}
    told["objects"] = {name: _told(state) for name, state in facts.objects.items()}
    told |= {name: getattr(facts, name) for name in KEYS[3:]}
    return json.dumps({name: value for name, value in told.items() if value}, ensure_ascii=False)


def _told(state: State) -> str | float:
    if state is None or state == SOME:
        return UNKNOWN if state is None else PRESENT
    return int(state) if float(state).is_integer() else state


def _caption_told(row: CaptionRow) -> Any:
    kept = {name: value for name in OF_CAPTION[1:] if (value := getattr(row, name))}
    return {"text": row.caption, **kept} if kept else row.caption


def _caption(found: Any, image: str, split: str | None, where: str) -> CaptionRow:
    if isinstance(found, str):
        return CaptionRow(image, _text(found, "captions", where), split=split)
    given = known_keys(found, OF_CAPTION, f"{where}, a caption")
    category, meta = (None if given.get(k) is None else _text(given[k], k, where) for k in ("category", "meta"))
    negatives, kinds = (texts(given.get(key) or (), key, where) for key in ("negatives", "kinds"))
    attributes = {name: _text(value, name, where) for name, value in _mapping(given, "attributes", where).items()}
    if kinds and len(kinds) != len(negatives):
        raise DataError(f'{where}: {len(kinds)} "kinds" for {len(negatives)} "negatives": give one for each, or none.')
    text = _text(given.get("text"), "text", where)
    return CaptionRow(image, text, category, meta, attributes, negatives, kinds, split)


def _state(found: Any, name: str, where: str) -> State:
    if found is None or found == UNKNOWN:
        return None
    if found in (PRESENT, ABSENT):
        return SOME if found == PRESENT else 0.0
    return _number(found, name, where)


def _number(found: Any, name: str, where: str) -> float:
    """Return a finite number, also one written as text."""
    try:
        value = float(found) if not isinstance(found, bool) else math.nan
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f'{where}: "{name}" must be a finite number; got {found!r}.')
    return value


def known_keys(found: Any, names: tuple[str, ...], where: str) -> Mapping[str, Any]:
    """Return a JSON object; raises `DataError` where it is none, or has other keys."""
    if not isinstance(found, Mapping):
        raise DataError(f"{where}: a JSON object in braces is expected; got {str(found)[:60]!r}.")
    for name in found:
        if name not in names:
            raise DataError(
                f"{where}: there is no key {name!r}. {did_you_mean(str(name), names)}Keys: {', '.join(names)}. Others "
                "must be left out, so that a misspelled one is found."
            )
    return found


def _mapping(given: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    found = {} if given.get(name) is None else given[name]
    if not isinstance(found, Mapping) or not all(isinstance(key, str) and key.strip() for key in found):
        raise DataError(f'{where}: "{name}" must be an object of names, {{"dog": ...}}; got {str(found)[:60]!r}.')
    return dict(found)


def texts(found: Any, name: str, where: str) -> tuple[str, ...]:
    """Return a list of texts, stripped; raises `DataError` where it is none."""
    if isinstance(found, str) or not isinstance(found, Iterable):
        raise DataError(f'{where}: "{name}" must be a list of texts, also if it is one; got {found!r}.')
    return tuple(_text(value, name, where) for value in found)


def _text(found: Any, name: str, where: str) -> str:
    if not isinstance(found, str) or not found.strip():
        raise DataError(f'{where}: "{name}" must be a text with something in it; got {found!r}.')
    return found.strip()
