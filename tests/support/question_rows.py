"""Rows of question files, read and written without the code under test."""

import gzip
import json
from pathlib import Path

DATA = Path(__file__).parents[1] / "data"


def published(data_set, kind):
    """Rows of a published file, read without the code under test."""
    with gzip.open(DATA / "pope" / f"{data_set}_pope_{kind}.json.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def written(path, rows, end="\n"):
    """A file of JSON lines."""
    path.write_bytes("".join(json.dumps(row) + end for row in rows).encode())
    return str(path)


def question(number, image="COCO_val2014_000000000007.jpg", text="Is there a dog in the image?", label="yes", **more):
    """A row of a question file."""
    return {"question_id": number, "image": image, "text": text, "label": label} | more
