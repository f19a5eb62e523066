"""`dash_b`: DASH-B's yes/no questions, from the user's download.

    lvlm-guard eval run --model M --tasks dash_b --questions DASH-B

`--questions` is the download's folder of parquet files, or a file of rows with question, answer, question_id, image (a
file name in `--images`) and object. The prompt is the question, which asks for yes or no.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from lvlm_guard.evals.errors import DataError, disk_trouble
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.jsonl import read
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.benchmark import cache_folder, given, made

NEEDS = ("question", "answer", "question_id", "image")


def dash_b(settings: Settings) -> list[EvalTask]:
    rows = [(f"Line {n} of {p}", row) for p in given("dash_b", settings) for n, row in read(p, NEEDS, what="question")]
    items: dict[str, Item] = {}
    for at, row in rows:
        key, truth, image = str(row["question_id"]), str(row["answer"]).lower(), row["image"]
        if truth not in ("yes", "no"):
            raise DataError(f"{at} has the answer {row['answer']!r}: DASH-B knows yes and no.")
        if key in items:
            raise DataError(f"{at} has question_id {key} a second time.")
        if isinstance(image, dict) and (settings.limit is None or len(items) < settings.limit):
            image = _unpacked(key, image.get("bytes"))
        name, files = (image.name, (image,)) if isinstance(image, Path) else (str(image), ())
        tags = {"object": str(row.get("object", ""))}
        items[key] = Item(key, name, row["question"], files, row["question"], truth, ("dash_b",), tags)
    return [made("dash_b", settings, items.values())]


def _unpacked(key: str, content: Any) -> Path:
    """Return the file of a picture that lies in a table, written once: so that pictures need no memory."""
    from PIL import Image, UnidentifiedImageError

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
