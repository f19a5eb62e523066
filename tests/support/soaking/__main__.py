"""`python -m soaking`: start the embedded model's server, soak it, and print what was seen as JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path

from guarded_server import Serve

from lvlm_guard.bench.workloads import world_workloads
from lvlm_guard.embedded.catalog import CLASSES
from soaking.asking import arms_of
from soaking.endpoint import Endpoint
from soaking.pool import pool
from soaking.processes import Processes
from soaking.reference import Reference
from soaking.soak import Found, Soak

POOL = 150  # questions that are asked again and again


async def soaked(url: str, pid: int, seconds: float, at_once: int, answers: int | None) -> Found:
    """Return what was seen of a server."""
    async with Endpoint(url) as endpoint:
        cases = pool(world_workloads(32, (1,)), arms_of(await endpoint.names()), POOL, Reference(CLASSES).answer)
        soak = Soak(endpoint, cases, at_once=at_once, processes=Processes(pid))
        while True:
            await soak.run(seconds)
            if not answers or sum(soak.found.answers.values()) >= answers or not soak.found.sound:
                return soak.found


def main() -> int:
    """Soak; returns 1 where an answer was wrong or unguarded, or the server did not come to rest."""
    parser = argparse.ArgumentParser(prog="python -m soaking")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--answers", type=int, help="go on until there are so many")
    parser.add_argument("--at-once", type=int, default=8)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # vLLM keeps pictures of 4 GiB, which new ones fill for an hour; memory that settles shows that nothing leaks
        server = Serve(Path(folder), "--mm-processor-cache-gb", "0.0625")
        try:
            work = soaked(server.url, server._process_tree.pid, given.seconds, given.at_once, given.answers)
            found = asyncio.run(work)
        finally:
            server.stop()
    print(
        json.dumps({"rows": found.rows(), "said": found.said, "sound": found.sound, "load": os.getloadavg()}, indent=1)
    )
    return 0 if found.sound else 1


if __name__ == "__main__":
    sys.exit(main())
