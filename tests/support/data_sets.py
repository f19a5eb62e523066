"""The same rows as JSON lines, parquet and webdataset tars: scenes of the embedded world, and rows that are wrong."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lvlm_guard.embedded import world

PROMPT = "is there a dog in the image ?"
BAD = {3: "corrupt picture", 5: "empty prompt", 8: "no picture"}


def png(number: int) -> bytes:
    held = io.BytesIO()
    Image.fromarray(world.scenes("test", 16).image[number % 16]).save(held, "PNG")
    return held.getvalue()


def rows(count: int) -> list[dict[str, Any]]:
    """Return fields with the picture's bytes; some are wrong, as `BAD` says."""
    made = []
    for number in range(count):
        prompts = (PROMPT, "is there a cat in the image ?", world.CAPTION_PROMPT)
        row: dict[str, Any] = {"id": f"r{number:03d}", "prompt": prompts[number % 3], "image": png(number)}
        wrong = BAD.get(number, "")
        if wrong == "corrupt picture":
            row["image"] = row["image"][:60]
        elif wrong == "empty prompt":
            row["prompt"] = " "
        elif wrong == "no picture":
            row["image"] = None
        made.append(row)
    return made


def as_lines(folder: Path, given: list[dict[str, Any]]) -> Path:
    """Write JSON lines with the pictures beside them."""
    (folder / "pictures").mkdir(parents=True)
    lines = []
    for row in given:
        told = dict(row)
        if row["image"] is not None:
            told["image"] = f"pictures/{row['id']}.png"
            (folder / told["image"]).write_bytes(row["image"])
        lines.append(json.dumps(told) + "\n")
    (folder / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")  # blank lines are no rows
    return folder / "data.jsonl"


def as_parquet(folder: Path, given: list[dict[str, Any]]) -> Path:
    """Write parquet with the pictures inside, in small row groups."""
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(given), folder / "data.parquet", row_group_size=7)
    return folder / "data.parquet"


def as_tar(folder: Path, given: list[dict[str, Any]]) -> Path:
    """Write a webdataset tar: KEY.png and KEY.txt, or KEY.json for every other one."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / "data.tar", "w") as opened:
        for number, row in enumerate(given):
            parts = {} if row["image"] is None else {"png": row["image"]}
            asked = row["prompt"]
            parts |= {"json": json.dumps({"prompt": asked}).encode()} if number % 2 else {"txt": asked.encode()}
            for end, data in parts.items():
                member = tarfile.TarInfo(f"set/{'a' * 110 if number == 4 else ''}{row['id']}.{end}")
                member.size = len(data)
                opened.addfile(member, io.BytesIO(data))
    return folder / "data.tar"


def answers(out: Path) -> list[dict[str, Any]]:
    """Return the rows of all files of answers, in their order."""
    return [row for file in sorted(out.glob("part-*.parquet")) for row in pq.read_table(file).to_pylist()]
