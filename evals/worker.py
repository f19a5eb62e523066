"""One worker of a demo: `python -m lvlm_guard.evals.worker`, driven by `crew` over its standard streams.

The first line it reads is the setting of the run, each further line a job; it answers each with a
line. It ends when its input ends, so it never outlives the process that started it.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Serve jobs from standard input until it ends."""
    # whatever a library prints must not end up among the answers
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    first = sys.stdin.readline()
    if not first:
        return
    setting = json.loads(first)

    import torch

    # one thread each: the model is so small that threads of one call wait for each other
    torch.set_num_threads(1)
    from lvlm_guard.evals.demo_tasks import Setting, prepare_run

    run = prepare_run(Setting(**setting))
    for line in sys.stdin:
        job = json.loads(line)
        task = run.tasks[job["task"]]
        found = run.asker.ask(task, job["block"], task.block(job["block"], run.setting.batch), job["todo"])
        replies.write(json.dumps(found) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
