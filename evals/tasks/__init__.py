"""The tasks of `lvlm-guard eval run`, by name: what is asked, of which pictures, and what is right.

Each maker takes the `Settings` of a run and returns `EvalTask`s (a name may stand for several); it checks
files and pictures before any model is loaded. A name that is not listed is looked up among the tasks
of lmms-eval (`stock`). Other packages register theirs under the entry point `lvlm_guard.tasks`.

- `world`: the embedded world; no network, no files.
- `pope_files`: POPE's question files (COCO, A-OKVQA, GQA, or one's own) over a folder of pictures.
- `chair_coco`: captions of COCO val2014.
- `mme_files`: MME's hallucination subset, from the authors' files.
- `stock`: any task of lmms-eval.
"""

from __future__ import annotations

from lvlm_guard.evals.spec.items import EvalTask
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.registry import Registry

REGISTRY = Registry(
    "task",
    "lvlm_guard.tasks",
    {
        "world_pope": "lvlm_guard.evals.tasks.world:world_pope_task",
        "world_chair": "lvlm_guard.evals.tasks.world:world_chair_task",
        "pope_coco": "lvlm_guard.evals.tasks.pope_files:pope_coco",
        "pope_aokvqa": "lvlm_guard.evals.tasks.pope_files:pope_aokvqa",
        "pope_gqa": "lvlm_guard.evals.tasks.pope_files:pope_gqa",
        "pope": "lvlm_guard.evals.tasks.pope_files:pope",
        "chair": "lvlm_guard.evals.tasks.chair_coco:chair",
        "mme_hallucination": "lvlm_guard.evals.tasks.mme_files:mme_hallucination",
    },
)
"""Name -> `Callable[[Settings], list[EvalTask]]`."""


def tasks_of(settings: Settings) -> list[EvalTask]:
    """Return the tasks of a run.

    Raises:
        UnknownNameError: neither here nor in lmms-eval is there a task of this name.
        DataError: files or pictures are missing or wrong, or a task can't be used in this run.
    """
    made: list[EvalTask] = []
    for name in settings.tasks:
        if name in REGISTRY.names():
            made += REGISTRY.get(name)(settings)
        else:
            from lvlm_guard.evals.tasks.stock import stock_tasks

            made += stock_tasks(name, settings)
    return made
