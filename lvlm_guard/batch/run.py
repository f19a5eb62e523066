"""Do all pieces of a plan that are not there yet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from lvlm_guard.batch.answering import Answered, Local
from lvlm_guard.batch.asking import Served
from lvlm_guard.batch.plan import DONE, How, Plan
from lvlm_guard.batch.rows import Piece, Row, read
from lvlm_guard.errors import KnobError, MissingExtraError
from lvlm_guard.files import whole
from lvlm_guard.progress import progress
from lvlm_guard.ranks import Place


class Answerer(Protocol):
    """Who answers rows: `Local` or `Served`."""

    def __call__(self, rows: Sequence[Row]) -> list[Answered]:
        """Return what became of rows, in order."""
        ...


def done(piece: Piece, out: Path) -> bool:
    """Return whether a piece has all its answers; a file that is cut short, as after a power cut, does not count."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(out / piece.answers).num_rows) == piece.count
    except (OSError, pa.ArrowInvalid):
        return False


def answer(piece: Piece, out: Path, how: How, answerer: Answerer) -> tuple[int, int]:
    """Answer a piece and write its file; return how many rows it has, and how many of them an error.

    Raises:
        GuardError: it is not the rows that are wrong.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = list(read(piece, how.prompt))
    if len(rows) != piece.count:
        raise KnobError(f"{piece.file} has changed: {piece.count} rows were planned and {len(rows)} are there.")
    answered = answerer(rows)
    columns: dict[str, tuple[Any, list[Any]]] = {
        "file": (pa.string(), [piece.file] * len(rows)),
        "index": (pa.int64(), [row.index for row in rows]),
        "id": (pa.string(), [row.id or None for row in rows]),
        "prompt": (pa.string(), [row.prompt or None for row in rows]),
        "text": (pa.string(), [one.text for one in answered]),
        "error": (pa.string(), [one.error for one in answered]),
        "method": (pa.string(), [one.method for one in answered]),
        "knobs": (pa.string(), [one.digest for one in answered]),
        "tokens": (pa.int32(), [one.tokens for one in answered]),
        "trace": (pa.string(), [json.dumps(one.trace) if one.trace else None for one in answered]),
    }
    known = {one.digest: one.knobs for one in answered if one.digest}
    made = pa.table(
        [pa.array(values, kind) for kind, values in columns.values()],
        schema=pa.schema(
            [(name, kind) for name, (kind, _) in columns.items()],
            metadata={"lvlm_guard.knobs": json.dumps(known, default=str)},
        ),
    )
    with whole(out / piece.answers, shared=True) as part:
        pq.write_table(made, part)
    return len(rows), sum(one.error is not None for one in answered)


def here(plan: Plan, out: Path, share: Place, device: str, at_once: int) -> Iterator[tuple[int, int]]:
    """Do a share of the pieces in this process; yield the rows and errors of each."""
    todo = [piece for piece in plan.pieces[share.rank :: share.world] if not done(piece, out)]
    if todo:
        how = plan.how
        answerer: Answerer = Served(how, at_once) if how.server else Local(how, share.device(device))
        for piece in todo:
            yield answer(piece, out, how, answerer)


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
