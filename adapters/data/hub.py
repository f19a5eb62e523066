"""Hugging Face data sets, from a folder of `save_to_disk` or from the hub.

Columns have names of their own, so a mapping says which is what: {"image": "img", "caption": "sentences"}. What the
mapping does not name is looked for under our own name. A column of captions may hold lists (Flickr30k: five a picture).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lvlm_guard.adapters.data.captions import CaptionData
from lvlm_guard.adapters.data.errors import DataError
from lvlm_guard.adapters.data.pictures import OnBad
from lvlm_guard.adapters.data.ranks import COUNTS, RankData
from lvlm_guard.adapters.data.rows import SPLITS, CaptionRow, RankRow, caption_row, rank_row
from lvlm_guard.errors import ImageError, MissingExtraError, did_you_mean
from lvlm_guard.images import load_image

_OURS = {"train": "train", "validation": "val", "val": "val", "dev": "val", "test": "test"}
_CAPTIONS = ("caption", "category", "meta", "attributes", "negatives", "kinds", "split")
_VALUES = ("object", "value", "weight", "split")


@dataclass(frozen=True)
class Column:
    """The pictures of data sets' rows; keys are "split/number".

    Args:
        parts: split -> data set, its pictures not decoded.
        column: which holds the pictures.
        name: of the whole.
    """

    parts: Mapping[str, Any]
    column: str
    name: str

    def load(self, key: str) -> Image.Image:
        """Return a picture; raises `ImageError`."""
        split, _, number = key.rpartition("/")
        found = self.parts[split][int(number)][self.column]
        if isinstance(found, Mapping):
            found = found.get("bytes") or found.get("path")
        if found is None:
            raise ImageError(f"Row {number} of {self.name} ({split}) has no picture in {self.column!r}.")
        return load_image(found)

    def describe(self) -> str:
        """Return the data set's name."""
        return self.name


def read_captions(
    name: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    on_bad: OnBad = "raise",
) -> CaptionData:
    """Read captions from a data set.

    Args:
        name: a folder of `save_to_disk`, or the hub's "owner/name".
        columns: our key -> their column.
        split: one of the data set's; None for all.
        on_bad: what becomes of a picture that can't be read.

    Raises:
        MissingExtraError: the library `datasets` is not installed.
        DataError: it can't be loaded, or lacks a column.
    """
    parts = _loaded(str(name), split)
    names = _columns(parts, columns or {}, ("image", "caption"), _CAPTIONS, str(name))
    rows: list[CaptionRow] = []
    for part, data in parts.items():
        for number, found in enumerate(_without_pictures(data, names)):
            given = _given(found, names, part)
            given["image"] = f"{part}/{number}"
            captions = given["caption"] if isinstance(given["caption"], list) else [given["caption"]]
            where = f"{name}, row {number} of {part}"
            rows += [caption_row({**given, "caption": caption}, where) for caption in captions]
    return CaptionData(rows, Column(_undecoded(parts, names["image"]), names["image"], str(name)), str(name), on_bad)


def read_ranks(
    name: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    object: str | None = None,
    exhaustive: Sequence[str] = (),
    template: str = COUNTS,
    on_bad: OnBad = "raise",
) -> RankData:
    """Read values from a data set; arguments and errors as `read_captions`.

    Args:
        object: what the values are of, where no column says it.
        exhaustive: objects of which a picture without a row has 0.
        template: the instruction.
    """
    parts = _loaded(str(name), split)
    needed = ("image", "value") if object else ("image", "value", "object")
    names = _columns(parts, columns or {}, needed, _VALUES, str(name))
    rows: list[RankRow] = []
    for part, data in parts.items():
        for number, found in enumerate(_without_pictures(data, names)):
            given = {"object": object, **_given(found, names, part), "image": f"{part}/{number}"}
            rows.append(rank_row(given, f"{name}, row {number} of {part}"))
    store = Column(_undecoded(parts, names["image"]), names["image"], str(name))
    return RankData(rows, store, str(name), exhaustive, template, on_bad)


def _loaded(name: str, split: str | None) -> dict[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            "Hugging Face data sets are read with the library `datasets`, which is not installed: "
            "pip install 'lvlm-guard[train]'."
        ) from error
    try:
        found = datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name)
    except Exception as error:  # the hub, the network and arrow raise dozens of kinds here
        raise DataError(
            f"The data set {name!r} can't be loaded ({type(error).__name__}: {' '.join(str(error).split())[:160]}). "
            "Give a folder that `save_to_disk` wrote, or the hub's owner/name while this machine has a network."
        ) from error
    parts = dict(found) if isinstance(found, dict) else {str(found.split or "train"): found}
    if split is not None:
        if split not in parts:
            raise DataError(
                f"{name} has no split {split!r}. {did_you_mean(split, parts)}It has: {', '.join(map(str, parts))}."
            )
        parts = {split: parts[split]}
    return parts


def _columns(
    parts: Mapping[str, Any], columns: Mapping[str, str], needed: Sequence[str], known: Sequence[str], name: str
) -> dict[str, str]:
    """Return our key -> their column, of those that are there."""
    present = list(next(iter(parts.values())).column_names)
    allowed = ("image", *known)
    for ours, theirs in columns.items():
        if ours not in allowed:
            raise DataError(f"No row has a {ours!r}. {did_you_mean(ours, allowed)}Keys: {', '.join(allowed)}.")
        if theirs not in present:
            raise DataError(
                f"{name} has no column {theirs!r}, which was to be the {ours}. {did_you_mean(theirs, present)}"
                f"Columns: {', '.join(present)}."
            )
    names = {ours: columns.get(ours, ours) for ours in allowed if columns.get(ours, ours) in present}
    missing = [ours for ours in needed if ours not in names]
    if missing:
        raise DataError(
            f"{name} has no column {missing[0]!r}. Columns: {', '.join(present)}. Say which it is: "
            f"columns={{{missing[0]!r}: ...}} (--column {missing[0]}=...)."
        )
    return names


def _given(found: Mapping[str, Any], names: Mapping[str, str], part: str) -> dict[str, Any]:
    given = {ours: found[theirs] for ours, theirs in names.items() if ours != "image" and found[theirs] is not None}
    if isinstance(given.get("attributes"), dict):  # arrow gives every row all keys that any row has
        given["attributes"] = {key: value for key, value in given["attributes"].items() if value is not None}
    given.setdefault("split", _OURS.get(part))
    if given["split"] not in SPLITS:
        given["split"] = _OURS.get(str(given["split"]))
    return given


def _without_pictures(data: Any, names: Mapping[str, str]) -> Any:
    """Return the data set without what would be decoded for nothing."""
    return data.select_columns([theirs for ours, theirs in names.items() if ours != "image"])


def _undecoded(parts: Mapping[str, Any], column: str) -> dict[str, Any]:
    """Return the pictures' column alone, as bytes or paths: our reader is stricter than the library's."""
    from datasets import Image as ImageFeature

    alone = {part: data.select_columns([column]) for part, data in parts.items()}
    return {
        part: data.cast_column(column, ImageFeature(decode=False))
        if isinstance(data.features[column], ImageFeature)
        else data
        for part, data in alone.items()
    }
