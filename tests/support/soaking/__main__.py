"""`python -m soaking`: start the embedded model's server, soak it under attack, and write what was seen as JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from guarded_server import Serve

from lvlm_guard.bench.workloads import world_workloads
from lvlm_guard.cli.console import environment
from lvlm_guard.embedded.catalog import CLASSES
from soaking.asking import arms_of
from soaking.attacks import Attacks
from soaking.endpoint import Chat, Endpoint
from soaking.pool import pool
from soaking.processes import Processes
from soaking.reference import Reference
from soaking.soak import Found, Soak

POOL = 150  # questions that are asked again and again
ROUND = 60.0  # seconds under attack, half as many before without

Row = dict[str, Any]


async def soaked(server: Serve, given: argparse.Namespace, noted: Callable[[Found, list[Row]], None]) -> Found:
    """Return what was seen of a server; `noted` is told of it round by round.

    Two thirds of a round are under attack, the third before it is not, so that both meet the same machine.
    """
    taken: dict[tuple[str, bool], list[float]] = {}
    now = False

    def heard(chat: Chat, asked: float, seconds: float) -> None:
        taken.setdefault((chat.guard or "plain", now), []).append(seconds)

    async with Endpoint(server.url) as endpoint:
        arms = arms_of(await endpoint.names())
        cases = pool(world_workloads(32, (1,)), arms, POOL, Reference(CLASSES).answer)
        watched = Processes(server._process_tree.pid)
        soak = Soak(endpoint, cases, at_once=given.at_once, processes=watched, heard=heard)
        attacks = Attacks(server.url, cases, lambda: server.part("serve.maskd"))
        attacked = 0.0
        while attacked < given.seconds or sum(soak.found.answers.values()) < given.answers:
            now = False
            await soak.run(min(ROUND / 2, given.seconds / 2))
            now = True
            await soak.run(min(ROUND, given.seconds), attacks.running)
            attacked += min(ROUND, given.seconds)
            soak.found.said += [one for one in attacks.through if one not in soak.found.said]
            noted(soak.found, [{"metric": "attacked_s", "value": attacked}, *attack_rows(attacks, taken)])
            if not soak.found.sound or attacks.through:
                break
        return soak.found


def attack_rows(attacks: Attacks, taken: Mapping[tuple[str, bool], Sequence[float]]) -> list[Row]:
    """Return what attacks there were, what got through, and the times of right answers with and without them."""
    rows: list[Row] = [{"metric": "attacks", "kind": kind, "value": n} for kind, n in sorted(attacks.made.items())]
    rows.append({"metric": "attacks_through", "value": len(attacks.through)})
    for (method, attacked), seconds in sorted(taken.items()):
        for share, name in ((0.5, "median_s"), (0.99, "p99_s")):
            value = float(np.quantile(seconds, share))
            rows.append({"metric": name, "method": method, "attacked": attacked, "value": value, "n": len(seconds)})
    return rows


def main() -> int:
    """Soak; returns 1 where an answer was wrong or unguarded, or the server did not come to rest."""
    parser = argparse.ArgumentParser(prog="python -m soaking")
    parser.add_argument("--seconds", type=float, default=600, help="under attack; half as long without")
    parser.add_argument("--answers", type=int, default=0, help="go on until there are so many")
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs/soak.json"), help="written after each round")
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    where = environment()

    def noted(found: Found, more: list[Row]) -> None:
        sound = found.sound and not any(row["value"] for row in more if row["metric"] == "attacks_through")
        told = {"command": "soak", "environment": where, "rows": found.rows() + more, "said": found.said}
        given.out.write_text(json.dumps({**told, "sound": sound}, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        # vLLM keeps pictures of 4 GiB, which new ones fill for an hour; memory that settles shows that nothing leaks
        server = Serve(Path(folder), "--mm-processor-cache-gb", "0.0625")
        try:
            asyncio.run(soaked(server, given, noted))
        finally:
            server.stop()
    return 0 if json.loads(given.out.read_text())["sound"] else 1


if __name__ == "__main__":
    sys.exit(main())
