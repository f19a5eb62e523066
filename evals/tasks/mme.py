"""`mme_hallucination`: MME's four tasks on objects and attributes, from the authors' files and pictures.

    lvlm-guard eval run --model M --tasks mme_hallucination --questions Your_Results --images MME_Benchmark

MME (arXiv:2306.13394) is given by its authors on request. `--questions` is the folder of its eval tool with
existence.txt, count.txt, position.txt and color.txt: `picture, question, answer` between tabs, two lines a picture.
Pictures lie in `--images`, or in a folder of the task's name below it. The prompt is the line's own; 800 points in all.
lmms-eval's copy of the whole benchmark is its task `mme`.
"""

from __future__ import annotations

from pathlib import Path

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import mme
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.jsonl import content
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.fetching import only_test

ANSWER_TOKENS = 16  # as lmms-eval's task


def mme_hallucination(settings: Settings) -> list[EvalTask]:
    """Return the four tasks as one, each a result row; whole pictures only, for the two answers count as a pair."""
    only_test(settings, "mme_hallucination")
    folder, root = _folder(settings.questions), Path(settings.images or ".")
    if not settings.images or not root.is_dir():
        raise DataError(f"mme_hallucination needs MME's pictures: --images {settings.images or '(none)'} is no folder.")
    items = []
    for task in mme.HALLUCINATION:
        asked = _lines(folder / f"{task}.txt")
        mme.pairs(task, [name for name, *_ in asked], ["yes" if gold == "yes" else "no" for *_, gold in asked])
        kept = list(dict.fromkeys(name for name, *_ in asked))[: settings.limit]
        for name in kept:
            picture = _picture(root, task, name)
            for number, (question, gold) in enumerate((q, g) for n, q, g in asked if n == name):
                key, tags = f"{task}/{name}/{number}", {"task": task}
                items.append(Item(key, f"{task}/{name}", question, (picture,), truth=gold, rows=(task,), tags=tags))
    about = {
        "source": f"MME's hallucination subset, files of {folder}",
        "protocol": "points for each answer and for each picture's two (arXiv:2306.13394), 200 a task",
        "prompt": items[0].prompt,
    }
    return [EvalTask("mme_hallucination", "mme", items, settings.max_new_tokens or ANSWER_TOKENS, about=about)]


def _folder(questions: tuple[str, ...]) -> Path:
    for place in map(Path, questions):
        if place.is_dir() and (place / f"{mme.HALLUCINATION[0]}.txt").is_file():
            return place
    told = f"none of {', '.join(questions)} is" if questions else "give"
    raise DataError(
        f"mme_hallucination needs MME's question files: {told} a folder with existence.txt, count.txt, position.txt "
        "and color.txt (--questions). The authors give them, with the pictures, on request; they are not fetched."
    )


def _lines(path: Path) -> list[tuple[str, str, str]]:
    """Return picture, question and right answer of each line."""
    found = []
    for number, line in enumerate(content(path).decode("utf-8-sig").split("\n"), 1):
        parts = line.rstrip().split("\t")
        if not line.strip():
            continue
        if len(parts) < 3 or parts[2].strip().lower() not in ("yes", "no"):
            raise DataError(f"Line {number} of {path} is not `picture, question, Yes or No` in tabs: {line[:80]!r}.")
        found.append((parts[0].strip(), parts[1].strip(), parts[2].strip().lower()))
    if not found:
        raise DataError(f"{path} holds no question.")
    return found


def _picture(root: Path, task: str, name: str) -> Path:
    for place in (root / task / name, root / task / "images" / name, root / name):
        if place.is_file():
            return place
    raise DataError(f"The picture {name} of MME's {task} is neither in {root / task} nor in {root}.")
