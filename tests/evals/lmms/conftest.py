"""lmms-eval as it is installed, offline, with this package's model found by its entry point."""

import pytest


@pytest.fixture(scope="session")
def evaluate(tmp_path_factory):
    """Run tasks in lmms-eval from Python; returns its result, and task -> doc id -> sample."""
    import os

    os.environ["HF_DATASETS_OFFLINE"] = "1"
    os.environ["HF_DATASETS_CACHE"] = str(tmp_path_factory.mktemp("datasets"))
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from lvlm_guard.evals.lmms import TASKS

    def run(model_args, tasks, *, include=(), **more):
        manager = TaskManager(include_path=[str(TASKS), *map(str, include)], include_defaults=False)
        found = simple_evaluate(
            model="lvlm_guard",
            model_args=model_args,
            tasks=tasks,
            task_manager=manager,
            bootstrap_iters=0,
            **{"device": "cpu", "batch_size": 1, **more},
        )
        return found, {task: {s["doc_id"]: s for s in samples} for task, samples in found["samples"].items()}

    return run


@pytest.fixture(scope="session")
def own():
    """The answers of this package's own asker to the same questions: decoder -> seed -> task -> key -> text."""
    from lvlm_guard.evals.infer.generate import prepare_run
    from lvlm_guard.evals.spec.settings import Settings
    from tests.support.world_files import CAPTIONS, PICTURES

    settings = Settings(
        methods=("agla", "agla-sample", "vote"),
        knobs={"agla": {"alpha": 1.0}},
        controls=False,
        seeds=2,
        limit=PICTURES,
        captions=CAPTIONS,
        device="cpu",
    )
    run = prepare_run(settings)

    def answers(decoder, seed=0):
        found = {}
        for task in run.tasks:
            found[task.name] = {}
            for number in task.blocks(32):
                items = task.block(number, 32)
                (said,) = run.answerer.ask(task, items, [(decoder, seed)])
                found[task.name] |= {item.key: one.text for item, one in zip(items, said, strict=True)}
        return found

    return answers
