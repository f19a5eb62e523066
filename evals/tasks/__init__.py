"""The tasks of `lvlm-guard eval ask`, by name: what is asked, of which pictures, and what is right.

Each maker takes the `Settings` of a run and returns `EvalTask`s (a name may stand for several); it checks
files and pictures before any model is loaded. A name that is not listed is looked up among the tasks
of lmms-eval (`stock`). Other packages register theirs under the entry point `lvlm_guard.tasks`.

- `world`: the embedded world, drawn or on photographs; no network, no files.
- `pope/`: POPE's question files (COCO, A-OKVQA, GQA, or one's own) over a folder of pictures.
- `coco/`: captions of COCO val2014, its annotations, and which of its pictures are held out.
- `opope`: captions of POPE's pictures, asked its questions; `repope`: RePOPE's labels for stored answers.
- `mme`, `amber`, `dash_b`, `mmhal`: from the authors' files.
- `stock`: any task of lmms-eval.
- `fetching`, `pictures`: files that are fetched, pictures that are found.
"""

from __future__ import annotations

from collections import Counter

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.spec.items import EvalTask
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.registry import Registry

STOCK = "lmms:"
"""Prefix of a task of lmms-eval that has the name of one here."""

REGISTRY = Registry(
    "task",
    "lvlm_guard.tasks",
    {
        "world_pope": "lvlm_guard.evals.tasks.world:world_pope_task",
        "world_chair": "lvlm_guard.evals.tasks.world:world_chair_task",
        "world_pope_real": "lvlm_guard.evals.tasks.world:world_pope_real_task",
        "world_chair_real": "lvlm_guard.evals.tasks.world:world_chair_real_task",
        "pope_coco": "lvlm_guard.evals.tasks.pope.task:pope_coco",
        "pope_aokvqa": "lvlm_guard.evals.tasks.pope.task:pope_aokvqa",
        "pope_gqa": "lvlm_guard.evals.tasks.pope.task:pope_gqa",
        "pope": "lvlm_guard.evals.tasks.pope.task:pope",
        "chair": "lvlm_guard.evals.tasks.coco.chair:chair",
        "opope": "lvlm_guard.evals.tasks.opope:opope",
        "mme_hallucination": "lvlm_guard.evals.tasks.mme:mme_hallucination",
        "amber": "lvlm_guard.evals.tasks.amber:amber",
        "amber_captions": "lvlm_guard.evals.tasks.amber:amber_captions",
        "dash_b": "lvlm_guard.evals.tasks.dash_b:dash_b",
        "mmhal": "lvlm_guard.evals.tasks.mmhal:mmhal",
    },
)
"""Name -> `Callable[[Settings], list[EvalTask]]`."""


def tasks_of(settings: Settings) -> list[EvalTask]:
    """Return the tasks of a run.

    Raises:
        UnknownNameError: neither here nor in lmms-eval is there a task of this name.
        DataError: files or pictures are missing or wrong, a task can't be used in this run, or it is asked twice.
    """
    made: list[EvalTask] = []
    for name in settings.tasks:
        if name in REGISTRY.names():
            made += REGISTRY.get(name)(settings)
        else:
            from lvlm_guard.evals.tasks.stock import stock_tasks

            made += stock_tasks(name, settings)
    asked = Counter((task.kind == "stock", task.name.removeprefix(STOCK)) for task in made)
    twice = [name for (_, name), times in asked.items() if times > 1]
    if twice:
        raise DataError(
            f"{', '.join(settings.tasks)} stands for {twice[0]} twice, which would test each difference twice: name it "
            "once, or the group that holds it."
        )
    return made
