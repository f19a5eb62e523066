"""One worker of a run: `python -m lvlm_guard.evals.infer.worker`, driven by `crew` over its standard streams.

The first line it reads are the settings of the run, each further line a job; it answers each with a
line. It ends when its input ends, so it never outlives the process that started it.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict


def main() -> None:
    """Serve jobs from standard input until it ends."""
    # whatever a library prints must not end up among the answers
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    first = sys.stdin.readline()
    if not first:
        return
    settings = json.loads(first)

    import torch

    # one thread each: workers are for models so small that threads of one call wait for each other
    torch.set_num_threads(1)
    from lvlm_guard.evals.infer.prepare import prepare_run
    from lvlm_guard.evals.spec.settings import Settings

    run = prepare_run(Settings.of(settings))
    tasks = {task.name: task for task in run.tasks}
    for line in sys.stdin:
        job = json.loads(line)
        task = tasks[job["task"]]
        todo = [(name, seed) for name, seed in job["todo"]]
        found = run.answerer.ask(task, task.block(job["block"], run.settings.batch), todo)
        replies.write(json.dumps([[asdict(said) for said in each] for each in found]) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
