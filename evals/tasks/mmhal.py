"""`mmhal`: MMHal-Bench's 96 questions, whose answers a judge of the user's grades (see `metrics.mmhal`).

lvlm-guard eval run --model M --tasks mmhal --questions response_template.json --images PICTURES
lvlm-guard eval judge runs/first --prompt prompt.txt     # writes what the judge is to be asked
lvlm-guard eval score runs/first                         # reads the replies in runs/first/verdicts
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import mmhal as judged
from lvlm_guard.evals.spec import jsonl
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.benchmark import given, made

NEEDS = ("question_type", "question_topic", "image_id", "image_src", "image_content", "question", "gt_answer")
FIELDS = ("image_content", "question", "gt_answer", "model_answer")
"""What a judge's prompt has room for, each in braces: {question} ..."""


def mmhal(settings: Settings) -> list[EvalTask]:
    """Return MMHal-Bench's questions, in their order, which their types go by; all of them, or none."""
    if settings.limit is not None:
        raise DataError("mmhal is judged as a whole, by the digest of all answers: leave out --limit.")
    files = given("mmhal", settings)
    if len(files) > 1:
        told = f"{len(files)} are given: {', '.join(map(str, files))}"
        raise DataError(f"mmhal asks the questions of one file, and {told}.")
    items = []
    for n, row in enumerate(template(files[0])):
        picture, rows = str(row["image_src"]).rpartition("/")[2], ("mmhal", f"mmhal_{row['question_type'].lower()}")
        items.append(Item(str(n), picture, row["question"], (), "", row["gt_answer"], rows, row))
    return [made("mmhal", settings, items)]


def template(path: str | Path) -> list[dict[str, Any]]:
    """Return MMHal-Bench's rows; raises `DataError` where a field is missing, they are not 96, or in another order."""
    rows = [{name: row[name] for name in NEEDS} for _, row in jsonl.read(path, NEEDS, what="question of MMHal-Bench")]
    if len(rows) != judged.ITEMS:
        raise DataError(f"{path} has {len(rows)} questions: MMHal-Bench has {judged.ITEMS}.")
    for number, (row, kind) in enumerate(zip(rows, cycle(judged.TYPES), strict=False), 1):
        if str(row["question_type"]).lower() != kind:
            told = f"is of the type {row['question_type']!r}, and in MMHal-Bench's order it is {kind!r}"
            raise DataError(f"Question {number} of {path} {told}: scores go by that.")
    return rows


def write_requests(folder: str | Path, prompt: str) -> list[Path]:
    """Write what a judge is to be asked of a run's answers: `requests/NUMBER-SEED.jsonl`, one file a decoder and seed.
    `prompt` is the judge's, with `FIELDS` in braces; the authors' is in their evaluation script (GPL-3.0, which is why
    none is here). Raises `DataError` where mmhal was not asked, an answer is missing, or the prompt lacks a field."""
    folder = Path(folder)
    items = [row for _, row in jsonl.numbered(folder / "items.jsonl") if row["kind"] == "mmhal"]
    if not items:
        raise DataError(f"{folder} did not ask mmhal: there is nothing for a judge.")
    missing = [f"{{{name}}}" for name in FIELDS if f"{{{name}}}" not in prompt]
    if missing:
        raise DataError(f"The judge's prompt has no place for {', '.join(missing)}.")
    answers: dict[tuple[str, int], dict[str, str]] = {}
    for row in pq.read_table(folder / "answers.parquet", filters=[("task", "=", items[0]["task"])]).to_pylist():
        answers.setdefault((row["decoder"], row["seed"]), {})[row["item"]] = row["text"]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in answers))}
    (folder / "requests").mkdir(exist_ok=True)
    written = []
    for (decoder, seed), texts in answers.items():
        for lost in (item["item"] for item in items if item["item"] not in texts):
            raise DataError(f"{decoder} has no answer to question {lost} of mmhal: a judge is asked of all or none.")
        told = {"prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest()}
        told["answers_sha256"] = judged.answers_digest([texts[item["item"]] for item in items])
        rows = []
        for item in items:
            asked = _filled(prompt, item["tags"] | {"model_answer": texts[item["item"]]})
            body = {"temperature": 0, "messages": [{"role": "user", "content": asked}]}
            rows.append(json.dumps({"custom_id": item["item"], **told, "body": body}, ensure_ascii=False))
        written.append(jsonl.write_lines(folder / "requests" / f"{numbers[decoder]}-{seed}.jsonl", rows))
    return written


def _filled(prompt: str, row: Mapping[str, Any]) -> str:
    """Return the prompt about one answer, filled in one pass: a question may hold a brace."""
    told = {**row, "image_content": ", ".join(row["image_content"])}
    return re.sub("|".join(f"{{{name}}}" for name in FIELDS), lambda field: str(told[field[0][1:-1]]), prompt)
