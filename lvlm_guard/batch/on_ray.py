"""The same pieces on a Ray cluster: actors with one model each, on Ray Data, to the same files.

An actor writes its piece's file itself, whole or not at all, and Ray moves numbers of pieces alone. So a piece that
Ray tries twice, as it does where a machine is lost, is there once. All machines need the data set, the folder of
answers and the model at the same paths.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lvlm_guard.batch.answering import Local
from lvlm_guard.batch.asking import Served
from lvlm_guard.batch.plan import Plan
from lvlm_guard.batch.run import Answerer, answer, done
from lvlm_guard.errors import MissingExtraError


class Actor:
    """Answers pieces; one a process of the cluster.

    Args:
        plan: with the pieces.
        out: folder of the answers.
        device: the model runs on.
        at_once: requests at one time, where a server answers.
    """

    def __init__(self, plan: Plan, out: Path, device: str, at_once: int) -> None:
        self._plan, self._out = plan, out
        self._answerer: Answerer = Served(plan.how, at_once) if plan.how.server else Local(plan.how, device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Answer the pieces of these numbers, and say how many rows and errors each has."""
        pieces = [self._plan.pieces[int(number)] for number in batch["piece"]]
        counts = [answer(piece, self._out, self._plan.how, self._answerer) for piece in pieces]
        return {"rows": [rows for rows, _ in counts], "errors": [errors for _, errors in counts]}


def on_ray(plan: Plan, out: Path, workers: int, device: str, at_once: int) -> Iterator[tuple[int, int]]:
    """Do all pieces that are left on a cluster: the one that RAY_ADDRESS names, else one on this machine.

    Args:
        plan: of `plan_of`.
        out: folder of the answers.
        workers: actors; each takes one GPU where the cluster has any, and one core where it has none.
        device: of each actor's model.
        at_once: requests at one time of each actor, where a server answers.

    Yields:
        rows and errors of each piece.

    Raises:
        MissingExtraError: ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("--engine ray needs ray: pip install 'lvlm-guard[ray]'.") from error
    todo = [{"piece": piece.number} for piece in plan.pieces if not done(piece, out)]
    if not todo:
        return
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False  # the command has one
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        gpus = bool(ray.cluster_resources().get("GPU")) and not plan.how.server
        made = ray.data.from_items(todo, override_num_blocks=len(todo)).map_batches(
            Actor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_gpus=int(gpus),
            fn_constructor_args=(plan, out, device, at_once),
        )
        for row in made.iter_rows():
            yield int(row["rows"]), int(row["errors"])
    finally:
        if ours:
            ray.shutdown()
