"""Rows of a data set: what is asked about which pictures; whatever is wrong with one stays with it."""

from __future__ import annotations

import base64
import binascii
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from PIL.Image import Image

from lvlm_guard.errors import ImageError, KnobError, MissingExtraError
from lvlm_guard.images import load_image

KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".tar": "tar"}
"""How a file is read, by the end of its name."""

PICTURES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"})
"""Members of a webdataset sample that are pictures, by the end of their names."""

COLUMNS = ("id", "prompt", "image", "images")
"""Of a parquet file or a line of JSON; others are left alone."""


@dataclass(frozen=True)
class Row:
    """One thing to ask.

    Args:
        index: its place in its file, from 0.
        id: that the data set gives it; "" for none.
        prompt: what is asked; "" where something is wrong.
        pictures: paths, or files' bytes.
        error: what is wrong with it; "" for nothing.
    """

    index: int
    id: str = ""
    prompt: str = ""
    pictures: tuple[str | bytes, ...] = ()
    error: str = field(default="", compare=False)

    def images(self) -> list[Image]:
        """Return its pictures, RGB; raises `ImageError`."""
        return [load_image(picture) for picture in self.pictures]


@dataclass(frozen=True)
class Piece:
    """Rows of one file that are answered together.

    Args:
        number: of the piece in its data set, from 0.
        file: path of the file.
        first: index of its first row in the file.
        count: of its rows.
        start: bytes before its first row, where the file can be read from there.
    """

    number: int
    file: str
    first: int
    count: int
    start: int = 0

    @property
    def answers(self) -> str:
        """The name of its file of answers."""
        return f"part-{self.number:07d}.parquet"


def kind_of(file: str) -> str:
    """Return how a file is read; raises `KnobError` where it is none that is."""
    kind = KINDS.get(Path(file).suffix.lower())
    if kind is None:
        raise KnobError(
            f"{file} is neither JSON lines, parquet nor a tar: its name has to end in {', '.join(KINDS)}. A packed one "
            "can't be read from the middle: unpack it first."
        )
    return kind


def cut(file: str, most: int) -> Iterator[tuple[int, int, int]]:
    """Yield first row, number of rows and bytes before them of the pieces of a file, `most` rows or fewer each; raises
    `KnobError` where it is no such file, or damaged."""
    kind = kind_of(file)
    if kind == "parquet":
        total = _opened(file).metadata.num_rows
        yield from ((first, min(most, total - first), 0) for first in range(0, total, most))
        return
    first, starts = 0, (start for start, *_ in (_lines(file) if kind == "jsonl" else _samples(file)))
    try:
        while piece := list(islice(starts, most)):
            yield first, len(piece), piece[0]
            first += len(piece)
    except OSError as error:
        raise KnobError(f"{file} can't be read: {error.strerror}.") from error
    except (tarfile.TarError, EOFError) as error:
        raise KnobError(f"{file} can't be read as a tar ({error}): it is damaged, or packed.") from error


def read(piece: Piece, prompt: str = "") -> Iterator[Row]:
    """Yield the rows of a piece.

    Args:
        piece: of `cut`.
        prompt: asked where a row has none.
    """
    found = {"jsonl": _json, "parquet": _parquet, "tar": _tar}[kind_of(piece.file)](piece)
    for index, fields in enumerate(found, piece.first):
        yield row_of(index, fields, Path(piece.file).parent, prompt)


def row_of(index: int, fields: Any, folder: Path, prompt: str) -> Row:
    """Return a row from what a file says of it; a wrong one has an error and no more than its id."""
    if not isinstance(fields, Mapping):
        return Row(index, error=str(fields))
    name = "" if fields.get("id") is None else str(fields["id"])
    asked = prompt if fields.get("prompt") is None else fields["prompt"]
    given = fields.get("images")
    if given is None:
        given = [] if fields.get("image") is None else [fields["image"]]
    if isinstance(asked, Exception):
        return Row(index, name, error=f"Its prompt can't be read ({asked}).")
    if not isinstance(asked, str) or not asked.strip():
        return Row(index, name, error="The prompt is empty, so there is nothing to answer.")
    if not isinstance(given, list) or not given:
        return Row(index, name, error="There is no picture, so there is nothing to guard.")
    try:
        return Row(index, name, asked, tuple(_picture(one, folder) for one in given))
    except ValueError as error:
        return Row(index, name, error=str(error))


def _picture(given: Any, folder: Path) -> str | bytes:
    if isinstance(given, Mapping):  # as `datasets` keeps pictures
        given = given.get("bytes") or given.get("path")
    if isinstance(given, bytes):
        return given
    if not isinstance(given, str) or not given:
        raise ImageError(f"A {type(given).__name__} is no picture: give a path, a data URL or a file's bytes.")
    if given.startswith("data:"):
        try:
            return base64.b64decode(given.partition(",")[2], validate=True)
        except binascii.Error as error:
            raise ImageError(f"A picture's data URL is not base64 ({error}).") from error
    if "://" in given:
        raise ImageError(f"{given:.80} is no picture on this machine: fetch it first.")
    return os.path.join(folder, given)


def _lines(file: str, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that hold something, with the bytes before each."""
    with open(file, "rb") as opened:
        opened.seek(start)
        for line in opened:
            if line.strip():
                yield start, line
            start += len(line)


def _json(piece: Piece) -> Iterator[Any]:
    for _, line in islice(_lines(piece.file, piece.start), piece.count):
        try:
            fields = json.loads(line)
            yield fields if isinstance(fields, dict) else "The line is no JSON object."
        except (ValueError, RecursionError) as error:
            yield f"The line is no JSON ({error})."


def _opened(file: str) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("Answers are kept as parquet: pip install 'lvlm-guard[batch]'.") from error
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise KnobError(f"{file} can't be read as parquet: {str(error).splitlines()[0]}") from error


def _parquet(piece: Piece) -> Iterator[Any]:
    with _opened(piece.file) as opened:
        meta, groups, before, skipped = opened.metadata, [], 0, None
        for group in range(meta.num_row_groups):
            behind = before + meta.row_group(group).num_rows
            if before < piece.first + piece.count and piece.first < behind:
                groups.append(group)
                skipped = before if skipped is None else skipped
            before = behind
        columns = [name for name in COLUMNS if name in opened.schema_arrow.names]
        batches = opened.iter_batches(64, row_groups=groups, columns=columns)
        rows = (row for batch in batches for row in batch.to_pylist())
        start = piece.first - (skipped or 0)
        yield from islice(rows, start, start + piece.count)


def _split(name: str) -> tuple[str, str]:
    folder, _, base = name.rpartition("/")
    stem, _, end = base.partition(".")
    return f"{folder}/{stem}" if folder else stem, end.lower()


def _samples(file: str, start: int = 0) -> Iterator[tuple[int, str, tarfile.TarFile, list[tarfile.TarInfo]]]:
    """Yield the samples of a tar, with the bytes before each: neighbours whose paths are alike up to the first dot."""
    with open(file, "rb") as whole:
        whole.seek(start)
        with tarfile.open(fileobj=whole, mode="r:") as opened:
            files = (member for member in opened if member.isfile() and not Path(member.name).name.startswith("."))
            for key, group in groupby(files, key=lambda member: _split(member.name)[0]):
                members = list(group)
                yield min(member.offset for member in members), key, opened, members


def _tar(piece: Piece) -> Iterator[Any]:
    for _, key, opened, members in islice(_samples(piece.file, piece.start), piece.count):
        held = {_split(member.name)[1]: opened.extractfile(member) for member in members}
        yield _sample(key, {end: b"" if file is None else file.read() for end, file in held.items()})


def _sample(key: str, parts: Mapping[str, bytes]) -> Any:
    """Return what a sample says: a prompt in .txt, or fields in .json, and its pictures.

    A text that can't be read leaves its error in the prompt's place.
    """
    fields: dict[str, Any] = {}
    try:
        if "json" in parts:
            told = json.loads(parts["json"])
            fields |= {name: told.get(name) for name in ("id", "prompt")}
        if "txt" in parts:
            fields["prompt"] = parts["txt"].decode()
    except (ValueError, AttributeError, RecursionError) as error:
        return {"id": key, "prompt": error}
    pictures = [data for end, data in parts.items() if end.rpartition(".")[2] in PICTURES]
    return {"id": key, **{name: value for name, value in fields.items() if value is not None}, "images": pictures}
