"""Kill -9 of a server's processes at random moments, under traffic of which every answer is checked.

    PYTHONPATH=tests/support .venv-serve/bin/python -m soaking.kills --out runs/kills.jsonl            (make kills)

Whose turn it is and when is drawn beforehand, from a seed. A kill is over once every name has answered rightly a
question about a new file that was asked after it. The kill of vLLM or of `serve` itself ends the server; the one who
starts it again, as systemd would, is this program, so that its start is in the time. Each kill is a line of --out, from
which a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from guarded_server import Serve, gone

from lvlm_guard.bench.workloads import world_workloads
from lvlm_guard.cli.console import environment
from lvlm_guard.embedded.catalog import CLASSES
from soaking.asking import arms_of
from soaking.endpoint import Chat, Endpoint
from soaking.pool import Case, pool
from soaking.processes import role_of
from soaking.reference import Reference
from soaking.soak import Soak

SHARES = {
    "front": 17, "maskd": 16, "API server": 4, "engine core": 5, "readers": 4, "keeper": 3, "serve": 1,
}  # fmt: skip
"""Of each 50 kills, how many fall on a process."""

ENDS = ("API server", "engine core", "serve")
"""Processes without which the server ends; what starts it again is not its own."""

MOST = 1200.0
"""Seconds after which a server has not recovered."""


def plan(kills: int, seed: int) -> list[tuple[str, float]]:
    """Return whom each kill falls on, and seconds of traffic before it."""
    drawn = random.Random(seed)
    roles = [role for role, share in SHARES.items() for _ in range(share)]
    turns = [role for _ in range(-(-kills // len(roles))) for role in drawn.sample(roles, len(roles))]
    return [(role, drawn.uniform(0.2, 3.0)) for role in turns[:kills]]


class Killing:
    """A server, those who ask it, and who kills its processes.

    Args:
        folder: for the server's log.
        out: file of the kills that were, one line each.
        cases: what is asked.
        seed: of what is asked when, and of whom a kill hits where several do the same.
    """

    def __init__(self, folder: Path, out: Path, cases: Sequence[Case], seed: int) -> None:
        with socket.socket() as any_port:
            any_port.bind(("127.0.0.1", 0))
            port = any_port.getsockname()[1]
        self._start = lambda: Serve(folder, "--port", str(port))
        self._seed, self._random = seed, random.Random(f"{seed} {out.stat().st_size}")
        self._out, self._cases = out, cases
        self._answered: dict[str | None, float] = {}  # guard -> when the newest right answer was asked for
        self.server = self._start()

    def _heard(self, chat: Chat, asked: float, _: float) -> None:
        self._answered[chat.guard] = max(asked, self._answered.get(chat.guard, 0.0))

    async def run(self, turns: Sequence[tuple[int, tuple[str, float]]]) -> None:
        """Kill, turn by turn; a line is written after each."""
        ends = asyncio.Event()
        anew = [Case(case.anew(number), case.image, case.expected) for number, case in enumerate(self._cases)]
        async with Endpoint(self.server.url, timeout=60) as endpoint:
            soak = Soak(
                endpoint, anew, at_once=6, seed=self._random.randrange(1 << 30), heard=self._heard, patience=1.0
            )
            traffic = asyncio.create_task(soak.ask_while(lambda: not ends.is_set()))
            try:
                for number, (role, wait) in turns:
                    row = {"seed": self._seed, "kill": number, "process": role, "waited_s": wait}
                    row |= await self._kill(role, wait, soak)
                    with self._out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(json.dumps(row), file=sys.stderr, flush=True)
            finally:
                ends.set()
                await asyncio.wait([traffic], timeout=90)
                traffic.cancel()

    async def _kill(self, role: str, wait: float, soak: Soak) -> dict[str, Any]:
        await asyncio.sleep(wait)
        found = soak.found
        before = found.answers.total(), found.wrong, found.unguarded, Counter(found.errors)
        root, parts = self.server._process_tree, self.server.parts()
        alike = [root] if role == "serve" else _who(role, parts)
        victim = self._random.choice(alike)
        killed = time.monotonic()
        victim.kill()
        status: int | None = None
        if role in ENDS:
            status = await asyncio.to_thread(self.server.ended, 240)
            assert status != 0
            assert await asyncio.to_thread(gone, parts, 120), "something was left running"
            self.server = await asyncio.to_thread(self._start)
        while not self._is_well(role, victim.pid, killed):
            assert time.monotonic() - killed < MOST, f"it did not recover: {found.said[-3:]}"
            await asyncio.sleep(0.02)
        seconds = time.monotonic() - killed
        return {
            "recovered_s": seconds,
            "exit": status,
            "answers": found.answers.total() - before[0],
            "wrong": found.wrong - before[1],
            "unguarded": found.unguarded - before[2],
            "errors": {str(status): count for status, count in (found.errors - before[3]).items()},
            "said": found.said if found.wrong or found.unguarded else [],
        }

    def _is_well(self, role: str, pid: int, killed: float) -> bool:
        answered = all(self._answered.get(guard, 0.0) > killed for guard in (None, "agla", "vote"))
        if not answered or role in (*ENDS, "readers"):
            return answered
        return any(one.pid != pid for one in _who(role, self.server.parts()))


def _who(role: str, parts: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Return the living processes of a role."""
    found = []
    for one in parts:
        with contextlib.suppress(psutil.NoSuchProcess):
            if role_of(one) == role and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


def main() -> int:
    """Kill; returns 1 where an answer was wrong or unguarded."""
    parser = argparse.ArgumentParser(prog="python -m soaking.kills")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of another one more kills are added to the same file")
    parser.add_argument("--out", type=Path, default=Path("runs/kills.jsonl"))
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.touch()
    done = [row for row in map(json.loads, given.out.read_text().splitlines()) if row["seed"] == given.seed]
    turns = list(enumerate(plan(given.kills, given.seed)))[len(done) :]
    print(f"Seed {given.seed}: {given.kills} kills, {len(done)} of them done before.", file=sys.stderr)
    if turns:
        arms = arms_of({"embedded": None, "embedded-agla": "agla", "embedded-vote": "vote"})
        cases = pool(world_workloads(32, (1,)), arms, 60, Reference(CLASSES).answer)
        with tempfile.TemporaryDirectory() as folder:
            killing = Killing(Path(folder), given.out, cases, given.seed)
            try:
                asyncio.run(killing.run(turns))
            finally:
                killing.server.stop()
    rows = list(map(json.loads, given.out.read_text().splitlines()))
    print(json.dumps({"command": "kills", "environment": environment(), "rows": rows}, indent=1))
    return int(any(row["wrong"] or row["unguarded"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
