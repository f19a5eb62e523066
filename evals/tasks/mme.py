"""`mme_hallucination`: MME's four tasks on objects and attributes, from the authors' files and pictures.

    lvlm-guard eval run --model M --tasks mme_hallucination --questions Your_Results --images MME_Benchmark

`--questions` is the folder of the authors' eval tool with existence.txt, count.txt, position.txt and color.txt:
`picture, question, answer` between tabs, two lines a picture. Pictures lie in `--images`, or in a folder of the task's
name below it. The prompt is the line's own. lmms-eval's copy of the whole benchmark is its task `mme`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.pope import Answer
from lvlm_guard.evals.metrics.yes_no import check_pairs
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.jsonl import content
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.benchmark import given, made

HALLUCINATION = ("existence", "count", "position", "color")  # objects, then attributes; 200 points each


def mme_hallucination(settings: Settings) -> list[EvalTask]:
    """Return the four tasks as one, each a result row; whole pictures only, for the two answers count as a pair."""
    folder = given("mme_hallucination", settings)[0].parent
    items = []
    for task in HALLUCINATION:
        lines = _lines(folder / f"{task}.txt")
        check_pairs(task, [name for name, *_ in lines], [gold for *_, gold in lines])
        kept, met = list(dict.fromkeys(name for name, *_ in lines))[: settings.limit], Counter[str]()
        for name, question, gold in lines:
            if name in kept:
                key, picture = f"{task}/{name}/{met[name]}", f"{task}/{name}"
                items.append(Item(key, picture, question, (), truth=gold, rows=(task,), tags={"task": task}))
                met[name] += 1
    about = {"source": f"MME's hallucination subset, files of {folder}"}
    return [made("mme_hallucination", replace(settings, limit=None), items, about, places=_places)]


def _lines(path: Path) -> list[tuple[str, str, Answer]]:
    answers: dict[str, Answer] = {"yes": "yes", "no": "no"}
    found = []
    for number, line in enumerate(content(path).decode("utf-8-sig").split("\n"), 1):
        parts = [part.strip() for part in line.rstrip().split("\t")]
        if line.strip():
            if len(parts) < 3 or parts[2].lower() not in answers:
                told = f"is not `picture, question, Yes or No` in tabs: {line[:80]!r}"
                raise DataError(f"Line {number} of {path} {told}.")
            found.append((parts[0], parts[1], answers[parts[2].lower()]))
    if not found:
        raise DataError(f"{path} holds no question.")
    return found


def _places(picture: str) -> tuple[str, ...]:
    task, _, name = picture.partition("/")
    return picture, f"{task}/images/{name}", name
