"""`mmhal`: MMHal-Bench's 96 questions, whose answers a judge of the user's grades (see `metrics.mmhal`).

    lvlm-guard eval run --model M --tasks mmhal --questions response_template.json --images PICTURES
    lvlm-guard eval judge runs/first --prompt prompt.txt     # writes what the judge is to be asked
    lvlm-guard eval score runs/first                         # reads the replies in runs/first/verdicts

The data set is Shengcao1006/MMHal-Bench on the hub (Apache-2.0; pictures are Flickr's).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import mmhal as judged
from lvlm_guard.evals.spec import jsonl
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.pictures import find_pictures

NEEDS = ("question_type", "question_topic", "image_id", "image_src", "image_content", "question", "gt_answer")
ANSWER_TOKENS = 256


def mmhal(settings: Settings) -> list[EvalTask]:
    """Return MMHal-Bench's questions, in their order, which their types go by; all of them, or none."""
    if settings.split == "val":
        raise DataError("mmhal is a published test, and settings must not be chosen on it.")
    if settings.limit is not None:
        raise DataError("mmhal is judged as a whole, by the digest of all answers: leave out --limit.")
    if len(settings.questions) != 1:
        raise DataError(
            "mmhal needs MMHal-Bench's response_template.json (--questions), of the data set Shengcao1006/MMHal-Bench "
            "on the hub, and its pictures (--images)."
        )
    rows = template(settings.questions[0])
    names = [str(row["image_src"]).rpartition("/")[2] for row in rows]
    found = find_pictures(names, settings.images, "mmhal", "mmhal")
    items = [
        Item(
            str(n),
            name,
            row["question"],
            (found[name],),
            truth=row["gt_answer"],
            rows=("mmhal", f"mmhal_{judged.TYPES[n % 8]}"),
            tags=row,
        )
        for n, (row, name) in enumerate(zip(rows, names, strict=True))
    ]
    about = {
        "source": "MMHal-Bench",
        "protocol": "free answers graded by a judge (arXiv:2309.14525)",
        "prompt": "{question}",
    }
    return [EvalTask("mmhal", "mmhal", items, settings.max_new_tokens or ANSWER_TOKENS, about=about)]


def template(path: str | Path) -> list[dict[str, Any]]:
    """Return MMHal-Bench's rows, without answers.

    Raises:
        DataError: the file is not MMHal-Bench's: a field is missing, they are not 96, or their order was changed.
    """
    rows = [{name: row[name] for name in NEEDS} for _, row in jsonl.read(path, NEEDS, what="question of MMHal-Bench")]
    if len(rows) != judged.ITEMS:
        raise DataError(f"{path} has {len(rows)} questions: MMHal-Bench has {judged.ITEMS}.")
    for number, row in enumerate(rows):
        if str(row["question_type"]).lower() != judged.TYPES[number % len(judged.TYPES)]:
            raise DataError(
                f"Question {number + 1} of {path} is of the type {row['question_type']!r}: in MMHal-Bench's order, "
                f"which scores go by, it is {judged.TYPES[number % len(judged.TYPES)]!r}."
            )
    return rows


def write_requests(folder: str | Path, prompt: str) -> list[Path]:
    """Write what a judge is to be asked of a run's answers: `requests/NUMBER-SEED.jsonl`, one file a decoder and seed.

    Args:
        folder: of a run whose answers are whole.
        prompt: the judge's, see `metrics.mmhal.write_requests`.

    Raises:
        DataError: the run did not ask mmhal, or as there.
    """
    import pyarrow.parquet as pq

    folder = Path(folder)
    items = [row for _, row in jsonl.numbered(folder / "items.jsonl") if row["kind"] == "mmhal"]
    if not items:
        raise DataError(f"{folder} did not ask mmhal: there is nothing for a judge.")
    columns = ["task", "item", "decoder", "seed", "text"]
    rows = pq.read_table(folder / "answers.parquet", columns=columns).to_pylist()
    answers: dict[tuple[str, int], dict[str, str]] = {}
    for row in rows:
        if row["task"] == items[0]["task"]:
            answers.setdefault((row["decoder"], row["seed"]), {})[row["item"]] = row["text"]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in answers))}
    (folder / "requests").mkdir(exist_ok=True)
    written = []
    for (decoder, seed), texts in answers.items():
        written.append(folder / "requests" / f"{numbers[decoder]}-{seed}.jsonl")
        given = [texts[item["item"]] for item in items if item["item"] in texts]
        judged.write_requests(written[-1], [item["tags"] for item in items], given, prompt)
    return written
