"""The tasks of `lvlm-guard eval ask`, by name: what is asked, of which pictures, and what is right.

Each maker takes the `Settings` of a run and returns `EvalTask`s (a name may stand for several); it checks files and
pictures before any model is loaded. A name that is not listed is looked up among the tasks of lmms-eval (`stock`).
Other packages register theirs under the entry point `lvlm_guard.tasks`.

`benchmarks.toml` says of published tests where their files are and how they are asked; `benchmark` makes tasks of that
and of the items that a test's own module reads. `repope` labels stored answers.
"""

from __future__ import annotations

from collections import Counter

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.spec.items import EvalTask
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.benchmark import check_split
from lvlm_guard.registry import Registry

STOCK = "lmms:"  # prefix of a task of lmms-eval that has the name of one here

_MAKERS = {
    "pope.task": "pope_coco pope_aokvqa pope_gqa pope opope",
    "coco": "chair",
    "mme": "mme_hallucination",
    "amber": "amber amber_captions",
    "dash_b": "dash_b",
    "mmhal": "mmhal",
}
"""Module -> the tasks that its functions of their names make."""

REGISTRY = Registry(
    "task",
    "lvlm_guard.tasks",
    {f"world_{name}": f"{__name__}.world:world_{name}_task" for name in ("pope", "chair", "pope_real", "chair_real")}
    | {name: f"{__name__}.{module}:{name}" for module, names in _MAKERS.items() for name in names.split()},
)
"""Name -> `Callable[[Settings], list[EvalTask]]`."""


def tasks_of(settings: Settings) -> list[EvalTask]:
    """Return the tasks of a run; raises `UnknownNameError`, or `DataError` where one can't be asked, or is twice."""
    made: list[EvalTask] = []
    for name in settings.tasks:
        check_split(name, settings)
        if name in REGISTRY.names():
            made += REGISTRY.get(name)(settings)
        else:
            from lvlm_guard.evals.tasks.stock import stock_tasks

            made += stock_tasks(name, settings)
    asked = Counter((task.kind == "stock", task.name.removeprefix(STOCK)) for task in made)
    twice = [name for (_, name), times in asked.items() if times > 1]
    if twice:
        told = f"{', '.join(settings.tasks)} stands for {twice[0]} twice"
        raise DataError(f"{told}, which would test each difference twice: name it once, or its group.")
    return made
