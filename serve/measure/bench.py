"""Blocks of requests to every arm in turn, and what they come to. See the package for how it is measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lvlm_guard.bench.intervals import RESAMPLES, median_interval, median_ratio
from lvlm_guard.bench.measure import turning
from lvlm_guard.serve.engine.arguments import TWIN
from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.measure.asking import Arm, Asking, Cell
from lvlm_guard.serve.measure.cost import Seconds, bound, verdict
from lvlm_guard.serve.measure.endpoint import Chat, Endpoint, Said
from lvlm_guard.serve.measure.records import Record, Records

Row = dict[str, Any]
PLAIN = ("guarded", None)
ORDINARY = ("plain", None)


def arms_of(names: Mapping[str, str | None], plain: str = "", guards: Sequence[str] = ()) -> list[Arm]:
    """Return the plain arm of a server and those of its guards.

    Args:
        names: of `Endpoint.names`.
        plain: name; "": the first plain one.
        guards: wanted; none: all.

    Raises:
        ServeError: there is no such name.
    """
    plains = [name for name, guard in names.items() if guard is None]
    if plain and plain not in plains:
        raise ServeError(f"The server has no plain model {plain!r}; it has {', '.join(plains) or 'none'}: --model.")
    if not plains:
        raise ServeError("The server has no plain model to compare with.")
    plain = plain or plains[0]
    served = {guard: name for name, guard in names.items() if guard is not None and name == f"{plain}-{guard}"}
    missing = [guard for guard in guards if guard not in served]
    if missing or not served:
        raise ServeError(
            f"{plain!r} is not guarded by {missing[0] if missing else 'anything'} there; it is by "
            f"{', '.join(served) or 'nothing'}."
        )
    return [Arm(plain, None), *(Arm(name, guard) for guard, name in served.items() if not guards or guard in guards)]


async def burst(endpoint: Endpoint, chats: Sequence[Chat], at_once: int) -> tuple[list[Said], float]:
    """Ask all with a fixed number in flight; returns the answers and the seconds from the first to the last.

    Raises:
        Refused, ServeError, Unproved: of any of them; the others are given up.
    """
    waiting = iter(list(enumerate(chats)))
    found: dict[int, Said] = {}

    async def worker() -> None:
        for place, chat in waiting:
            found[place] = await endpoint.ask(chat)

    began = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(chats))):
                group.create_task(worker())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [found[place] for place in range(len(chats))], time.perf_counter() - began


class ServerBench:
    """Measures the arms of one server, and of an ordinary one beside it.

    Args:
        endpoints: "guarded", and "plain" where there is one.
        arms: the plain one first.
        cells: kinds of requests at each load.
        blocks: that count; one more goes before them.
        warm: about the same pictures all the time.
        tick: told of each block of a cell that is done.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        arms: Sequence[Arm],
        cells: Sequence[Cell],
        *,
        blocks: int,
        warm: bool = False,
        tick: Callable[[int], object] = lambda count: None,
    ) -> None:
        self.endpoints, self.arms, self.cells, self.blocks = endpoints, arms, cells, blocks
        self.tick = tick
        self._asking = Asking(warm)

    async def run(self, records: Records) -> None:
        """Measure what the records lack; what is measured stays in them, however this ends.

        Raises:
            Refused, ServeError, Unproved: as of `burst`.
        """
        for block, order in enumerate(turning(self.arms, self.blocks + 1), -1):
            for cell in self.cells:
                for arm in order:
                    key = (cell.workload.task, cell.at_once, block, arm.server, arm.guard)
                    if block < 0 or not records.has(*key):
                        record = await self._record(cell, block, arm)
                        if block >= 0:
                            records.add(record)
                self.tick(1)

    async def _record(self, cell: Cell, block: int, arm: Arm) -> Record:
        endpoint = self.endpoints[arm.server]
        # the block before the first has pictures behind the last one's
        chats = self._asking.chats(cell, block % (self.blocks + 1), arm)
        before = await self._matched(endpoint, arm)
        said, seconds = await burst(endpoint, chats, cell.at_once)
        after = await self._matched(endpoint, arm)
        if any(chat.full and one.tokens != chat.tokens for chat, one in zip(chats, said, strict=True)):
            raise ServeError(
                f"{arm.name!r} does not go on to the {chats[0].tokens} tokens that were asked for, so arms would do "
                "different work. Is the model's context too short (--max-new-tokens)?"
            )
        return Record(
            cell.workload.task,
            cell.at_once,
            block,
            arm.server,
            arm.guard,
            len(said),
            seconds,
            sum(one.tokens for one in said),
            tuple(one.first for one in said),
            None if before is None or after is None else after - before,
        )

    @staticmethod
    async def _matched(endpoint: Endpoint, arm: Arm) -> float | None:
        """Return the seconds that the front has waited for the matcher so far."""
        if arm.guard is None:
            return 0.0
        name = ("lvlm_guard_matcher_seconds_sum", frozenset({("guard", arm.guard)}))
        return (await endpoint.metrics()).get(name, 0.0)


def rows(records: Sequence[Record], twin: bool) -> list[Row]:
    """Return the figures of a run in long form; blocks that some arm lacks are left out.

    Args:
        records: of the run.
        twin: whether the guarded server has a twin engine.
    """
    found: list[Row] = []
    for task, at_once in dict.fromkeys((one.task, one.at_once) for one in records):
        mine = [one for one in records if (one.task, one.at_once) == (task, at_once)]
        arms = _whole_blocks(mine)
        for (server, guard), blocks in arms.items():
            base = {"method": guard or "greedy", "server": server, "task": task, "concurrency": at_once}
            base["n"] = sum(one.requests for one in blocks)
            base["blocks"] = len(blocks)
            found += [base | row for row in _speed(blocks)]
            for against in (PLAIN, ORDINARY):
                if against in arms and against != (server, guard) and (server, guard) != ORDINARY:
                    least = min(one.at_once for one in records if one.task == task)
                    alone = [one for one in records if (one.task, one.at_once) == (task, least)]
                    ratio = _ratios(blocks, arms[against], guard, twin, server == against[0], alone)
                    found += [base | {"against": against[0]} | row for row in ratio]
    return found


def _whole_blocks(records: Sequence[Record]) -> dict[tuple[str, str | None], list[Record]]:
    arms = list(dict.fromkeys((one.server, one.guard) for one in records))
    held = {(one.block, one.server, one.guard): one for one in records}
    whole = [n for n in sorted({one.block for one in records}) if all((n, *arm) in held for arm in arms)]
    return {arm: [held[n, *arm] for n in whole] for arm in arms} if whole else {}


def _speed(blocks: Sequence[Record]) -> Iterator[Row]:
    yield _row("tokens_per_s", *median_interval([one.tokens / one.seconds for one in blocks]))
    yield _row("seconds_per_request", *median_interval([one.seconds / one.requests for one in blocks]))
    yield _row("first_token_median_s", *_quantile(blocks, 0.5))
    yield _row("first_token_p95_s", *_quantile(blocks, 0.95))
    waits = [one.matched / one.requests for one in blocks if one.matched is not None]
    if waits and blocks[0].guard is not None:
        yield _row("matcher_wait_s", *median_interval(waits))


def _ratios(
    blocks: Sequence[Record],
    plain: Sequence[Record],
    guard: str | None,
    twin: bool,
    same_server: bool,
    alone: Sequence[Record],
) -> Iterator[Row]:
    value, low, high = median_ratio([one.seconds for one in blocks], [one.seconds for one in plain])
    row = _row("time_ratio", value, low, high)
    at_rest = [one for one in alone if (one.server, one.guard) == (plain[0].server, None)]
    waits = [one.matched / one.requests for one in alone if one.guard == guard and one.matched is not None]
    if waits:
        allowed = bound(
            guard,
            twin,
            same_server,
            Seconds(
                plain=float(np.median([one.seconds / one.requests for one in plain])),
                first=float(np.median([second for one in at_rest for second in one.first])),
                matched=float(np.median(waits)) if guard is not None else 0.0,
            ),
        )
        row |= {"bound": allowed, "verdict": verdict(value, low, allowed)}
    yield row
    yield _row("throughput_ratio", *median_ratio([_rate(one) for one in blocks], [_rate(one) for one in plain]))
    yield _row("first_token_ratio", *median_ratio([_first(one) for one in blocks], [_first(one) for one in plain]))


def _rate(record: Record) -> float:
    return record.tokens / record.seconds


def _first(record: Record) -> float:
    return float(np.median(record.first))


def _row(metric: str, value: float, low: float | None = None, high: float | None = None) -> Row:
    return {"metric": metric, "value": value, "low": low, "high": high}


def _quantile(blocks: Sequence[Record], share: float) -> tuple[float, float | None, float | None]:
    """Return a quantile of all times to the first token and its 95 % interval; whole blocks are resampled."""
    held = np.array([one.first for one in blocks])
    if len(held) < 2:
        return float(np.quantile(held, share)), None, None
    drawn = np.random.default_rng(0).integers(0, len(held), (RESAMPLES, len(held)))
    found = np.quantile(held[drawn].reshape(RESAMPLES, -1), share, axis=1)
    return float(np.quantile(held, share)), float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))


def is_twin(names: Mapping[str, str | None]) -> bool:
    """Return whether a server has a twin engine: whether it serves one of a twin's guards."""
    return any(guard in TWIN for guard in names.values())
