"""One door to all kinds of data: what a source is, is told from its name and what lies there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from lvlm_guard.adapters.data import folder, hub, jsonl, shards
from lvlm_guard.adapters.data.captions import CaptionData
from lvlm_guard.adapters.data.errors import DataError
from lvlm_guard.adapters.data.pictures import OnBad
from lvlm_guard.adapters.data.ranks import COUNTS, RankData

HUB = "hf:"
WORLD = "world"
CAPTIONS, RANKS = "captions.jsonl", "ranks.jsonl"

Kind = Literal["world", "file", "shards", "hub", "folder"]


def open_captions(
    source: str | Path,
    *,
    images: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    on_bad: OnBad = "raise",
) -> CaptionData:
    """Read captions from anywhere.

    Args:
        source: "world"; a .jsonl file; a .tar, a glob or range of them, or a folder of them; "hf:owner/name" or a
            folder of `save_to_disk`; a folder with captions.jsonl in it, or of pictures with captions beside them.
        images: where a .jsonl's paths start; None for its own folder.
        columns: of a Hugging Face data set: our key -> its column.
        on_bad: what becomes of a picture that can't be read.

    Raises:
        DataError: it is none of these, or not as its kind must be.
    """
    kind, place = recognised(source, CAPTIONS)
    _only(kind, source, images=images, columns=columns)
    if kind == "world":
        from lvlm_guard.adapters.world import captions

        return captions()
    if kind == "file":
        return jsonl.read_captions(place, images=images, on_bad=on_bad)
    if kind == "shards":
        return shards.read_captions(place, on_bad=on_bad)
    if kind == "hub":
        return hub.read_captions(place, columns=columns, on_bad=on_bad)
    return folder.read_captions(place, on_bad=on_bad)


def open_ranks(
    source: str | Path,
    *,
    object: str | None = None,
    exhaustive: Sequence[str] = (),
    template: str | None = None,
    images: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    on_bad: OnBad = "raise",
) -> RankData:
    """Read values from anywhere.

    Args:
        source: as for `open_captions`, with ranks.jsonl; "world" is ordered by count, "world:size" and
            "world:brightness" by these; a folder of pictures has a folder for each value.
        object: what the values are of, where neither rows nor columns say it.
        exhaustive: objects of which a picture without a row has 0, where no header can say it.
        template: the instruction; None for the header's, or "Rank the numbers of {object}."
        images, columns, on_bad: as for `open_captions`.

    Raises:
        DataError: it is none of these, not as its kind must be, or an argument is for another kind.
    """
    kind, place = recognised(source, RANKS)
    _only(kind, source, images=images, columns=columns, object=object, exhaustive=exhaustive, template=template)
    if kind == "world":
        from lvlm_guard.adapters.world import ranks

        return ranks(by=place.partition(":")[2] or "count")
    if kind == "file":
        return jsonl.read_ranks(place, images=images, on_bad=on_bad)
    asked = template or COUNTS
    if kind == "shards":
        return shards.read_ranks(place, exhaustive=exhaustive, template=asked, on_bad=on_bad)
    if kind == "hub":
        return hub.read_ranks(
            place, columns=columns, object=object, exhaustive=exhaustive, template=asked, on_bad=on_bad
        )
    if object is None:
        raise DataError(f"{source} is a folder of pictures: say what its folders' numbers are of, object='age'.")
    return folder.read_ranks(place, object=object, template=asked, on_bad=on_bad)


def recognised(source: str | Path, listed: str) -> tuple[Kind, str]:
    """Return what kind of source it is, and its place as the kind's reader takes it.

    Args:
        source: as for `open_captions`.
        listed: the file of rows looked for in a folder.

    Raises:
        DataError: there is nothing of that name.
    """
    name = str(source)
    path = Path(name)
    if name == WORLD or name.startswith(WORLD + ":"):
        return "world", name
    if name.startswith(HUB):
        return "hub", name.removeprefix(HUB)
    if name.endswith(".tar") or "*" in name or "{" in name:
        return "shards", name
    if path.is_file():
        if path.suffix not in (".jsonl", ".ndjson"):
            raise DataError(
                f"{name} is no file of rows, which ends in .jsonl. Published layouts are converted first: "
                "`python -m lvlm_guard.adapters.data --help` tells which."
            )
        return "file", name
    if not path.is_dir():
        raise DataError(
            f"There is nothing called {name!r}. A source is `world`, a .jsonl file, .tar shards, hf:owner/name, or a "
            "folder of pictures."
        )
    if (path / listed).is_file():
        return "file", str(path / listed)
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return "hub", name
    if next(path.glob("*.tar"), None):
        return "shards", str(path / "*.tar")
    return "folder", name


_TAKES: dict[Kind, tuple[str, ...]] = {
    "world": (),
    "file": ("images",),
    "shards": ("exhaustive", "template"),
    "hub": ("columns", "object", "exhaustive", "template"),
    "folder": ("object", "template"),
}


def _only(kind: Kind, source: str | Path, **given: object) -> None:
    """Refuse arguments that this kind of source would leave unused."""
    for name, value in given.items():
        if value and name not in _TAKES[kind]:
            own = ", ".join(_TAKES[kind]) or "none"
            raise DataError(
                f"{source} is read as {kind}, which does not take `{name}` (but {own}). A file of rows says in its "
                "header and rows what else would be an argument."
            )
