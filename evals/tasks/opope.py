"""`opope`: captions of POPE's pictures, asked POPE's questions afterwards (see `metrics.opope`).

lvlm-guard eval run --model M --tasks opope --images val2014
lvlm-guard eval run --model M --tasks opope --images PICTURES --questions mine_pope_random.json
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lvlm_guard.evals.metrics.opope import asked_object
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.benchmark import made
from lvlm_guard.evals.tasks.coco.chair import PROMPT
from lvlm_guard.evals.tasks.pope.files import QuestionFile, described, published_files

Truth = dict[str, list[list[str]]]
"""Kind of questions -> [object, "yes" or "no"] pairs about a picture."""


def opope(settings: Settings) -> list[EvalTask]:
    """Return the pictures of POPE's questions about COCO, each to be captioned once."""
    given = [path for path in map(Path, settings.questions) if path.is_file()]
    files = [described(path, len(given)) for path in given] or published_files("coco", paper=False)
    items = [Item(Path(name).stem, name, PROMPT, (), truth=t, rows=("opope",)) for name, t in truths_of(files).items()]
    about = {"questions": [file.describe() for file in files]}
    return [made("opope", replace(settings, limit=settings.captions or settings.limit), items, about)]


def truths_of(files: Sequence[QuestionFile]) -> dict[str, Truth]:
    """Return what captions of each picture are asked, by its file name; raises `DataError` where they can't be."""
    truths: dict[str, Truth] = {}
    for file in files:
        kind = file.row.removeprefix("pope").lstrip("_") or "own"
        for question in file.questions:
            asked = truths.setdefault(question.image, {}).setdefault(kind, [])
            asked.append([asked_object(question.text), question.label])
    return truths
