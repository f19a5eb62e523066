"""`dash_b`: DASH-B's yes/no questions, from the user's download.

    lvlm-guard eval run --model M --tasks dash_b --questions DASH-B

DASH-B (arXiv:2503.23573, the data set YanNeu/DASH-B on the hub, 673 MB) states no licence: nothing of it is kept here
or fetched. `--questions` is the download's folder of parquet files, or JSON lines with question, answer, question_id,
image (a file name in `--images`) and object.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lvlm_guard.evals.errors import DataError, disk_trouble
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.jsonl import check_fields, read
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.fetching import cache_folder, only_test
from lvlm_guard.evals.tasks.pictures import find_pictures

FIELDS = ("question", "answer", "question_id", "image")
ANSWER_TOKENS, QUESTIONS = 16, 2_682


def dash_b(settings: Settings) -> list[EvalTask]:
    """Return DASH-B's questions; the prompt is the question, which asks for yes or no."""
    only_test(settings, "dash_b")
    rows: dict[str, dict[str, Any]] = {}
    for at, row in _rows(settings):
        check_fields(row, FIELDS, at, "question of DASH-B")
        if str(row["answer"]).lower() not in ("yes", "no"):
            raise DataError(f"{at} has the answer {row['answer']!r}: DASH-B knows yes and no.")
        if rows.setdefault(str(row["question_id"]), row) is not row:
            raise DataError(f"{at} has question_id {row['question_id']!r} a second time.")
    rows = dict(list(rows.items())[: settings.limit])
    named = [str(row["image"]) for row in rows.values() if not isinstance(row["image"], dict)]
    found = find_pictures(named, settings.images, "dash_b", "dash_b") if named else {}
    items = []
    for key, row in rows.items():
        picture = _unpacked(key, row["image"]) if isinstance(row["image"], dict) else found[str(row["image"])]
        asked, truth, tags = row["question"], str(row["answer"]).lower(), {"object": str(row.get("object", ""))}
        items.append(Item(key, picture.name, asked, (picture,), asked, truth, ("dash_b",), tags))
    about = {
        "source": f"DASH-B, {len(items)} of {QUESTIONS} questions",
        "protocol": "yes/no questions about pictures that make models see what is not there (arXiv:2503.23573)",
        "prompt": "{question}",
    }
    return [EvalTask("dash_b", "dash_b", items, settings.max_new_tokens or ANSWER_TOKENS, about=about)]


def _rows(settings: Settings) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where each row stands, and the row."""
    for place in map(Path, settings.questions):
        tables = sorted(place.rglob("*.parquet")) if place.is_dir() else [place] if place.suffix == ".parquet" else []
        for table in tables:
            try:
                with pq.ParquetFile(table) as file:
                    for number, row in enumerate((row for b in file.iter_batches(64) for row in b.to_pylist()), 1):
                        yield f"Row {number} of {table}", row
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"{table} can't be read: {error}. Download it again.") from None
        if place.is_file() and not tables:
            yield from ((f"Line {number} of {place}", row) for number, row in read(place, FIELDS))
        elif not tables:
            raise DataError(f"{place} holds no parquet file: give the download of the data set YanNeu/DASH-B.")
    if not settings.questions:
        raise DataError(
            "dash_b needs its questions: download the data set YanNeu/DASH-B from the hub (673 MB) and name its folder "
            "with --questions. It states no licence, so it is neither part of this package nor fetched."
        )


def _unpacked(key: str, image: dict[str, Any]) -> Path:
    """Return the file of a picture that lies in a table, written once: so that pictures need no memory."""
    from PIL import Image, UnidentifiedImageError

    content: Any = image.get("bytes")
    try:
        suffix = (Image.open(BytesIO(content)).format or "png").lower()
    except (TypeError, UnidentifiedImageError, OSError):
        raise DataError(f"Question {key} of DASH-B has no picture in its table: download it again.") from None
    path = cache_folder() / "dash_b" / f"{key}.{suffix}"
    if not path.is_file() or path.stat().st_size != len(content):
        with disk_trouble(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return path
