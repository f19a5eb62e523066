"""A task of lmms-eval over one's own files, offline: same prompt, same scoring, another place of the data.

    made = localize("pope_adv", "coco_pope_adversarial.json", "tasks_local", images="val2014")
    lmms-eval --model lvlm_guard --model_args ... --include_path tasks_local --tasks pope_adv_local

Writes one YAML file that includes the stock one, and, where need be, a parquet file of a few kB; pictures stay where
they are. Everything is checked here, before any model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from lvlm_guard.evals.errors import DataError, disk_trouble
from lvlm_guard.evals.lmms.index import stock_files, stock_task
from lvlm_guard.evals.spec import jsonl
from lvlm_guard.evals.tasks.pope.questions import identify, read_questions

POPE_FIELDS = {"question_id", "image", "text", "label"}


class Localized(NamedTuple):
    name: str  # for `--tasks`
    folder: Path  # for `--include_path`
    task: Path  # its YAML file
    data: Path  # its parquet file
    documents: int
    notes: list[str]  # sentences that a user should read


def localize(
    task: str, data: str | Path, out: str | Path, *, images: str | Path | None = None, name: str = ""
) -> Localized:
    """Write a task `name` (TASK_local) that asks a stock `task`'s questions about one's own files, into the folder
    `out`.

    `data` is POPE's question file (JSON lines: question_id, image, text, label), or JSON, JSON lines or parquet with
    the columns that the stock task reads, among them `image`: file names in `images`, or pictures in parquet (None).
    Raises `UnknownNameError`, `DataError` (also where the task is refused), or `RunError` where nothing can be written.
    """
    (path, split), named = stock_task(task), name or f"{task}_local"
    if named in stock_files():
        raise DataError(f"lmms-eval has a task {named!r} of its own, which would be run instead: give another name.")
    source, folder, notes, rows = Path(data), Path(out), list[str](), list[dict[str, Any]]()
    if images is None:
        if source.suffix != ".parquet":
            raise DataError(f"{source} names pictures: give the folder they are in (images=).")
        target, documents = source.resolve(), _documents(source)
    else:
        if not Path(images).is_dir():
            raise DataError(f"There is no folder {images} to take the pictures from.")
        given = read_rows(source) if source.suffix == ".parquet" else [row for _, row in jsonl.read(source)]
        if given and given[0].keys() >= POPE_FIELDS:
            given = [
                {"id": str(q.question_id), "question_id": str(q.question_id), "question": q.text, "answer": q.label}
                | {"image_source": Path(q.image).stem, "category": split, "image": q.image}
                for q in read_questions(source)
            ]
            if identify(source) is None:
                told = "is none of the published POPE files: its scores compare with no published table."
                notes.append(f"{source} {told}")
        rows = _with_pictures(source, given, Path(images))
        target, documents = (folder / f"{named}.parquet").resolve(), len(rows)
    config: dict[str, Any] = {"include": str(path), "task": named, "dataset_path": "parquet", "dataset_name": None}
    config |= {"dataset_kwargs": {"data_files": {split: str(target)}}}
    written = folder / f"{named}.yaml"
    with disk_trouble(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if rows:
            write_rows(rows, target)
        written.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return Localized(named, folder, written, target, documents, notes)


def _documents(source: Path) -> int:
    try:
        file = pq.ParquetFile(source)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{source} can't be read as parquet: {error}.") from error
    if "image" in file.schema_arrow.names and pa.types.is_string(file.schema_arrow.field("image").type):
        raise DataError(f"{source} holds names of pictures, not the pictures: give the folder they are in (images=).")
    return int(file.metadata.num_rows)


def _with_pictures(source: Path, rows: list[dict[str, Any]], root: Path) -> list[dict[str, Any]]:
    paths: dict[str, Path] = {}
    for number, row in enumerate(rows):
        image = row.get("image")
        if not isinstance(image, str):
            raise DataError(f"Row {number} of {source} has the image {image!r}: give a file's name in {root}.")
        if odd := sorted(row.keys() ^ rows[0].keys()):
            fields = ", ".join(odd)
            raise DataError(f"Row {number} of {source} has other fields than row 0 ({fields}): all need the same ones.")
        paths[image] = (root / image).resolve()
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing:
        raise DataError(f"{len(missing)} of {len(paths)} pictures are not in {root}; the first is {missing[0]}.")
    return [row | {"image": {"bytes": None, "path": str(paths[row["image"]])}} for row in rows]


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write rows as parquet that `datasets`, and so lmms-eval, reads; `image` is {"bytes": ..., "path": ...}. A picture
    with a path alone stays where it is. (`Dataset.to_parquet` would copy it into the file.)"""
    import datasets

    listed = [dict(row) for row in rows]
    kind = datasets.features.features.generate_from_arrow_type
    plain = {name: kind(pa.array([value]).type) for name, value in listed[0].items() if name != "image"}
    schema = datasets.Features(plain | {"image": datasets.Image()}).arrow_schema
    pq.write_table(pa.Table.from_pylist(listed, schema=schema), path, compression="zstd")


def read_rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows
