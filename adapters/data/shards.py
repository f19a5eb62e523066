"""webdataset shards: tar files in which `a.jpg` and `a.json`, or `a.jpg` and `a.txt`, are one sample.

The layout is webdataset's (github.com/webdataset/webdataset): a sample's members follow each other and share their
name up to the first dot. `.json` holds one row or a list of rows, of captions or of values, without "image"; `.txt` a
caption a line. The tars are indexed once, by seeking from header to header; a picture is then read at its place, so
that pictures can be drawn in any order, which shuffling within shards can't give.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Any

from PIL import Image

from lvlm_guard.adapters.data.captions import CaptionData
from lvlm_guard.adapters.data.errors import DataError
from lvlm_guard.adapters.data.jsonl import parsed
from lvlm_guard.adapters.data.pictures import SUFFIXES, OnBad
from lvlm_guard.adapters.data.ranks import COUNTS, RankData
from lvlm_guard.adapters.data.rows import Row, caption_row, rank_row
from lvlm_guard.errors import ImageError
from lvlm_guard.images import load_image

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Members:
    """Pictures inside tars; keys are "shard.tar/name".

    Args:
        places: key -> (tar, first byte, bytes).
        name: what the shards were named by.
    """

    places: dict[str, tuple[str, int, int]] = field(repr=False)
    name: str = "shards"

    def load(self, key: str) -> Image.Image:
        """Return a picture; raises `ImageError`."""
        if key not in self.places:
            raise ImageError(f"There is no picture {key!r} in {self.name}.")
        tar, start, size = self.places[key]
        try:
            with open(tar, "rb") as file:
                file.seek(start)
                return load_image(file.read(size))
        except OSError as error:
            raise ImageError(f"{key} can't be read: {error.strerror or error}.") from error

    def describe(self) -> str:
        """Return what the shards were named by."""
        return self.name


def read_captions(pattern: str | Path, *, on_bad: OnBad = "raise") -> CaptionData:
    """Read captions from shards named by a path, a glob, or a range: "data/{000..011}.tar".

    Raises:
        DataError: no such shard, one that is compressed or cut short, or a sample without picture or text.
    """
    rows, store, dropped = _read(str(pattern), caption_row, text=True, on_bad=on_bad)
    return CaptionData(rows, store, str(pattern), on_bad, dropped)


def read_ranks(
    pattern: str | Path, *, exhaustive: Sequence[str] = (), template: str = COUNTS, on_bad: OnBad = "raise"
) -> RankData:
    """Read values from shards; what a file's header says is given as arguments. Errors as `read_captions`."""
    rows, store, dropped = _read(str(pattern), rank_row, text=False, on_bad=on_bad)
    return RankData(rows, store, str(pattern), exhaustive, template, on_bad, dropped)


def named(pattern: str) -> list[str]:
    """Return the shards that a path, glob or range names, in order; raises `DataError`."""
    span = _RANGE.search(pattern)
    if span:
        first, last = span.groups()
        numbers = range(int(first), int(last) + 1)
        found = [pattern[: span.start()] + f"{n:0{len(first)}d}" + pattern[span.end() :] for n in numbers]
    else:
        found = [pattern] if Path(pattern).is_file() else sorted(glob(pattern))
    missing = [path for path in found if not Path(path).is_file()]
    if missing or not found:
        raise DataError(f"There is no shard {(missing or [pattern])[0]!r}. Give a tar's path, a glob, or a range.")
    return found


def _read(
    pattern: str, row: Callable[[Any, str], Row], *, text: bool, on_bad: OnBad
) -> tuple[list[Row], Members, dict[str, int]]:
    rows: list[Row] = []
    places: dict[str, tuple[str, int, int]] = {}
    dropped = {"samples without a picture or a text": 0}
    for tar in named(pattern):
        for key, members in _samples(tar):
            full = f"{Path(tar).name}/{key}"
            pictures: list[tuple[int, int]] = [place for suffix, place in members.items() if f".{suffix}" in SUFFIXES]
            found = _rows(members, tar, full, row, text=text)
            if not pictures or not found:
                if on_bad == "raise":
                    raise DataError(
                        f"{tar}: the sample {key!r} has {', '.join(sorted(members))}: a picture and "
                        f"{'.json or .txt' if text else '.json'} with a row in it are expected. To go on without such "
                        'samples, which are then counted, give on_bad="skip" (--on-bad skip).'
                    )
                dropped["samples without a picture or a text"] += 1
                continue
            if full in places:
                raise DataError(f"{tar}: two samples are called {full!r}; give each a name of its own.")
            start, size = pictures[0]
            places[full] = (tar, start, size)
            rows += found
    return rows, Members(places, pattern), dropped


def _rows(
    members: dict[str, tuple[int, int]], tar: str, key: str, row: Callable[[Any, str], Row], *, text: bool
) -> list[Row]:
    where = f"{tar}, sample {key!r}"

    def keyed(found: Any, where: str) -> Row:
        return row({**found, "image": key} if isinstance(found, dict) else found, where)

    if "json" in members:
        return parsed(_text(tar, *members["json"], where), where, keyed)
    if text and "txt" in members:
        lines = _text(tar, *members["txt"], where).splitlines()
        return [keyed({"caption": line}, where) for line in lines if line.strip()]
    return []


def _text(tar: str, start: int, size: int, where: str) -> str:
    with open(tar, "rb") as file:
        file.seek(start)
        try:
            return file.read(size).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: its text is not UTF-8 ({error}).") from error


def _samples(tar: str) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Yield (name, {suffix: (first byte, bytes)}) of a tar's samples."""
    key: str | None = None
    members: dict[str, tuple[int, int]] = {}
    try:
        # "r:" takes no compressed tar, in which nothing can be read at its place.
        with tarfile.open(tar, "r:") as archive:
            size = Path(tar).stat().st_size
            for member in archive:
                if not member.isfile():
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} is cut short")
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                name = f"{folder}/{stem}" if folder else stem
                if name != key:
                    if key is not None:
                        yield key, members
                    key, members = name, {}
                members[suffix.lower()] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise DataError(
            f"{tar} can't be read as a tar: {error}. It is damaged, cut short or compressed; unpack a .tar.gz first "
            "(gunzip), since pictures are read at their place in it."
        ) from error
    if key is not None:
        yield key, members
