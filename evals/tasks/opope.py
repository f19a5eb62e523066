"""`opope`: captions of POPE's pictures, asked POPE's questions afterwards (see `metrics.opope`).

lvlm-guard eval run --model M --tasks opope --images val2014
lvlm-guard eval run --model M --tasks opope --images PICTURES --questions mine_pope_random.json
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lvlm_guard.evals.decoders.decoder import PAPER
from lvlm_guard.evals.metrics.opope import asked_object
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.coco.chair import CAPTION_TOKENS, PROMPT
from lvlm_guard.evals.tasks.fetching import only_test
from lvlm_guard.evals.tasks.pictures import find_pictures
from lvlm_guard.evals.tasks.pope.files import QuestionFile, described, published_files
from lvlm_guard.evals.tasks.pope.task import paper_tokens

Truth = dict[str, list[list[str]]]
"""Kind of questions -> [object, "yes" or "no"] pairs about a picture."""


def opope(settings: Settings) -> list[EvalTask]:
    """Return the pictures of POPE's questions about COCO, each to be captioned once."""
    only_test(settings, "opope")
    given = [path for path in map(Path, settings.questions) if path.is_file()]
    files = [described(path, len(given)) for path in given] or published_files("coco", paper=False)
    truths = truths_of(files)
    names = list(truths)[: settings.captions or settings.limit]
    found = find_pictures(names, settings.images, "opope")
    items = [Item(Path(name).stem, name, PROMPT, (found[name],), truth=truths[name], rows=("opope",)) for name in names]
    about = {
        "source": "pictures of POPE's questions about COCO",
        "questions": [file.describe(file.questions()) for file in files],
        "protocol": "POPE's questions asked of captions (HALC, arXiv:2403.00425), objects as CHAIR reads them",
        "prompt": PROMPT,
    }
    tokens = paper_tokens(settings.model) if settings.preset == PAPER else CAPTION_TOKENS
    return [EvalTask("opope", "opope", items, settings.max_new_tokens or tokens, about=about)]


def truths_of(files: Sequence[QuestionFile]) -> dict[str, Truth]:
    """Return what captions of each picture are asked, by its file name; raises `DataError` where they can't be."""
    truths: dict[str, Truth] = {}
    for file in files:
        kind = file.row.removeprefix("pope").lstrip("_") or "own"
        for question in file.questions():
            asked = truths.setdefault(question.image, {}).setdefault(kind, [])
            asked.append([asked_object(question.text), question.label])
    return truths
