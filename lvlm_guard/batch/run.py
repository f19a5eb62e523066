"""Do all pieces of a plan that are not there yet: in this process, or on a Ray cluster by actors with a model each."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lvlm_guard.batch.answering import Answerer, answerer_of
from lvlm_guard.batch.how import How
from lvlm_guard.batch.plan import DONE, Plan
from lvlm_guard.batch.rows import Piece, read
from lvlm_guard.errors import KnobError, MissingExtraError
from lvlm_guard.files import whole
from lvlm_guard.progress import progress
from lvlm_guard.ranks import Place


def done(piece: Piece, out: Path) -> bool:
    """Return whether a piece has all its answers; a file that is cut short, as after a power cut, does not count."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(out / piece.answers).num_rows) == piece.count
    except (OSError, pa.ArrowInvalid):
        return False


def answer(piece: Piece, out: Path, how: How, answerer: Answerer) -> tuple[int, int]:
    """Answer a piece and write its file; return how many rows it has, and how many of them an error; raises
    `GuardError` where it is not the rows that are wrong."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = list(read(piece, how.prompt))
    if len(rows) != piece.count:
        raise KnobError(f"{piece.file} has changed: {piece.count} rows were planned and {len(rows)} are there.")
    answered = answerer(rows)
    names = ("file", "index", "id", "prompt", "text", "error", "method", "knobs", "tokens", "trace")
    kinds = {"index": pa.int64(), "tokens": pa.int32()}
    known = {one.digest: one.knobs for one in answered if one.digest}
    schema = pa.schema(
        [(name, kinds.get(name, pa.string())) for name in names],
        metadata={"lvlm_guard.knobs": json.dumps(known, default=str)},
    )
    lines = []
    for row, one in zip(rows, answered, strict=True):
        trace = json.dumps(one.trace) if one.trace else None
        told = (one.text, one.error, one.method, one.digest, one.tokens, trace)
        lines.append(dict(zip(names, (piece.file, row.index, row.id or None, row.prompt or None, *told), strict=True)))
    made = pa.Table.from_pylist(lines, schema=schema)
    with whole(out / piece.answers, shared=True) as part:
        pq.write_table(made, part)
    return len(rows), sum(one.error is not None for one in answered)


def here(plan: Plan, out: Path, share: Place, device: str, at_once: int) -> Iterator[tuple[int, int]]:
    """Do a share of the pieces in this process; yield the rows and errors of each."""
    todo = [piece for piece in plan.pieces[share.rank :: share.world] if not done(piece, out)]
    if todo:
        answerer = answerer_of(plan.how, share.device(device), at_once)
        for piece in todo:
            yield answer(piece, out, plan.how, answerer)


class Actor:
    """Answers pieces; one a process of the cluster. It takes what `on_ray` does.

    It writes its piece's file itself, whole or not at all, and Ray moves numbers of pieces alone. So a piece that Ray
    tries twice, as it does where a machine is lost, is there once.
    """

    def __init__(self, plan: Plan, out: Path, device: str, at_once: int) -> None:
        self._plan, self._out = plan, out
        self._answerer = answerer_of(plan.how, device, at_once)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Answer the pieces of these numbers, and say how many rows and errors each has."""
        pieces = [self._plan.pieces[int(number)] for number in batch["piece"]]
        counts = [answer(piece, self._out, self._plan.how, self._answerer) for piece in pieces]
        return {"rows": [rows for rows, _ in counts], "errors": [errors for _, errors in counts]}


def on_ray(plan: Plan, out: Path, workers: int, device: str, at_once: int) -> Iterator[tuple[int, int]]:
    """Do all pieces that are left on a Ray cluster: the one that RAY_ADDRESS names, else one on this machine.

    All machines need the data set, the folder of answers and the model at the same paths.

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


def run(
    plan: Plan,
    out: Path,
    doing: Callable[[], Iterator[tuple[int, int]]],
    echo: Callable[[str], object],
    bar: bool | None = None,
) -> dict[str, Any]:
    """Do what is left of a plan, and say what there is then.

    Args:
        plan: of `plan_of`.
        out: folder of the answers.
        doing: does pieces, and yields the rows and errors of each.
        echo: tells how far it is.
        bar: whether to draw how far it is; None: on a terminal.

    Returns:
        rows: of the data set; done: of these, answered by now; errors: rows of this call without an answer; now: rows
        of this call; finished: whether nothing is left.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("Answers are kept as parquet: pip install 'lvlm-guard[batch]'.") from error
    rows = sum(piece.count for piece in plan.pieces)
    before = sum(piece.count for piece in plan.pieces if done(piece, out))
    now = errors = 0
    with progress("rows", rows - before, echo, bar) as advance:
        for count, wrong in doing():
            now, errors = now + count, errors + wrong
            advance(count)
    there = sum(piece.count for piece in plan.pieces if done(piece, out))
    told = {"rows": rows, "done": there, "now": now, "errors": errors, "finished": there == rows}
    if told["finished"]:
        for left in out.glob("*.part"):  # of processes that were killed
            left.unlink(missing_ok=True)
        with whole(out / DONE, shared=True) as part:
            part.write_text(json.dumps({"rows": rows, "files": len(plan.pieces)}), encoding="utf-8")
    return told
