"""A task of lmms-eval over one's own files, offline: same prompt, same scoring, another place of the data.

    made = localize("pope_adv", "coco_pope_adversarial.json", "tasks_local", images="val2014")
    lmms-eval --model lvlm_guard --model_args ... --include_path tasks_local --tasks pope_adv_local

Writes one YAML file that includes the stock one, and, where need be, a parquet file of a few kB; pictures stay where
they are. Everything is checked here, before any model is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lvlm_guard.evals.errors import DataError, disk_trouble
from lvlm_guard.evals.lmms.parquet import read_rows, write_rows
from lvlm_guard.evals.lmms.requests import REFUSED
from lvlm_guard.evals.lmms.stock import StockTask, stock_names, stock_task
from lvlm_guard.evals.tasks.pope_questions import check_pictures, identify, read_questions

POPE_FIELDS = {"question_id", "image", "text", "label"}


@dataclass(frozen=True)
class Localized:
    """A task that was written.

    Args:
        name: for `--tasks`.
        folder: for `--include_path`.
        task: its YAML file.
        data: its parquet file.
        documents: how many.
        notes: sentences that a user should read.
    """

    name: str
    folder: Path
    task: Path
    data: Path
    documents: int
    notes: tuple[str, ...] = ()


def localize(
    task: str, data: str | Path, out: str | Path, *, images: str | Path | None = None, name: str = ""
) -> Localized:
    """Write a task that asks a stock task's questions about one's own files.

    Args:
        task: of lmms-eval, such as "pope_adv", "coco_cap_chair", "mme".
        data: POPE's question file (JSON lines: question_id, image, text, label); or JSON, JSON lines or parquet
            with the columns that the stock task reads, among them `image`.
        out: folder for the files.
        images: folder of the pictures, where `image` holds file names; None for parquet that holds the pictures.
        name: of the new task; "" for TASK_local. A stock task's own name would be ignored by lmms-eval.

    Raises:
        UnknownNameError: lmms-eval has no such task.
        DataError: a file, folder or picture is missing, a row can't be used, or the task is refused.
        RunError: the files can't be written.
    """
    if task in REFUSED:
        raise DataError(f"{task} is not offered: {REFUSED[task]}.")
    stock = stock_task(task)
    named = name or f"{task}_local"
    if named in stock_names():
        raise DataError(f"lmms-eval has a task {named!r} of its own, which would be run instead: give another name.")
    source, folder = Path(data), Path(out)
    if images is not None and not Path(images).is_dir():
        raise DataError(f"There is no folder {images} to take the pictures from.")
    notes: list[str] = []
    if source.suffix == ".parquet" and images is None:
        target, documents = _as_it_is(source)
    else:
        rows = _pope(source, images, stock, notes) if _is_pope(source) else _rows(source, images)
        with disk_trouble(folder):
            folder.mkdir(parents=True, exist_ok=True)
            target = (folder / f"{named}.parquet").resolve()
            documents = write_rows(rows, target)
    config = {
        "include": str(stock.path),
        "task": named,
        "dataset_path": "parquet",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {stock.split: str(target)}},
    }
    with disk_trouble(folder):
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / f"{named}.yaml"
        written.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return Localized(named, folder, written, target, documents, tuple(notes))


def _as_it_is(source: Path) -> tuple[Path, int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(source)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{source} can't be read as parquet: {error}.") from error
    columns = file.schema_arrow.names
    if "image" in columns and pa.types.is_string(file.schema_arrow.field("image").type):
        raise DataError(f"{source} holds names of pictures, not the pictures: give the folder they are in (images=).")
    return source.resolve(), file.metadata.num_rows


def _is_pope(source: Path) -> bool:
    """Return whether the first row is one of POPE's question files."""
    if source.suffix == ".parquet":
        return False
    first = _json_rows(source)[:1]
    return bool(first) and first[0].keys() >= POPE_FIELDS


def _pope(source: Path, images: str | Path | None, stock: StockTask, notes: list[str]) -> list[dict[str, Any]]:
    """Return POPE's questions in lmms-eval's columns."""
    questions = read_questions(source)
    root = _folder(source, images)
    check_pictures(questions, root)
    known = identify(source)
    if known is None:
        notes.append(f"{source} is none of the published POPE files: its scores compare with no published table.")
    return [
        {
            "id": str(q.question_id),
            "question_id": str(q.question_id),
            "question": q.text,
            "answer": q.label,
            "image_source": Path(q.image).stem,
            "category": stock.split,
            "image": {"bytes": None, "path": str((root / q.image).resolve())},
        }
        for q in questions
    ]


def _rows(source: Path, images: str | Path | None) -> list[dict[str, Any]]:
    """Return the user's rows, with the paths of their pictures."""
    rows = read_rows(source) if source.suffix == ".parquet" else _json_rows(source)
    root = _folder(source, images)
    if not rows:
        raise DataError(f"{source} holds no row.")
    names = {}
    for number, row in enumerate(rows):
        image = row.get("image")
        if not isinstance(image, str):
            raise DataError(
                f"Row {number} of {source} has the image {image!r}: give a file name in {root} under `image`."
            )
        if row.keys() != rows[0].keys():
            odd = ", ".join(sorted(row.keys() ^ rows[0].keys()))
            raise DataError(
                f"Row {number} of {source} has other fields than row 0 ({odd}): all rows need the same ones."
            )
        names[image] = (root / image).resolve()
    missing = [name for name, path in names.items() if not path.is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} pictures that {source} names are not in {root}; the first is {missing[0]}."
        )
    return [dict(row) | {"image": {"bytes": None, "path": str(names[row["image"]])}} for row in rows]


def _folder(source: Path, images: str | Path | None) -> Path:
    if images is None:
        raise DataError(f"{source} names pictures: give the folder they are in (images=).")
    return Path(images)


def _json_rows(source: Path) -> list[Mapping[str, Any]]:
    """Return the rows of a JSON list or of JSON lines."""
    try:
        text = source.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"The data file {source} can't be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is no JSON: {error}. Parquet files end in .parquet.") from error
    rows: Sequence[Any]
    try:
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in _lines(text)]
    except json.JSONDecodeError as error:
        raise DataError(f"{source} is neither a JSON list nor JSON lines: {error}.") from error
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"Row {number} of {source} is no object with fields: {str(row)[:60]}.")
    return list(rows)


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]
