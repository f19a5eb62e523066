"""The memory of a server's processes, by what each of them does."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from lvlm_guard.errors import MissingExtraError
from lvlm_guard.serve.errors import ServeError

_ROLES = {
    "serve.maskd": "maskd", "serve.front": "front", "to_process": "readers",
    "EngineCor": "engine core", "VLLM::Worker": "worker", "launch.engine": "API server",
    "APIServer": "API server", "keeper.py": "keeper",
}  # fmt: skip
MIB = 1 << 20


@dataclass(frozen=True)
class Sample:
    """Resident memory at one time.

    Args:
        at: seconds, of the monotonic clock.
        mib: role -> MiB.
    """

    at: float
    mib: dict[str, float]


class Processes:
    """A process and all that descend from it.

    Args:
        pid: of `lvlm-guard serve`.

    Raises:
        ServeError: there is no such process.
        MissingExtraError: psutil is not installed.
    """

    def __init__(self, pid: int) -> None:
        try:
            import psutil  # type: ignore[import-untyped]
        except ImportError as error:
            raise MissingExtraError("Watching processes needs psutil: pip install psutil.") from error
        self._gone = psutil.NoSuchProcess
        try:
            self._root = psutil.Process(pid)
        except psutil.NoSuchProcess as error:
            raise ServeError(
                f"There is no process {pid}: --pid is that of `lvlm-guard serve` on this machine."
            ) from error

    def sample(self) -> Sample:
        """Return what they hold now."""
        mib: dict[str, float] = {}
        for process in [self._root, *self._root.children(recursive=True)]:
            try:
                role = "serve" if process == self._root else role_of(process)
                mib[role] = mib.get(role, 0.0) + process.memory_info().rss / MIB
            except self._gone:
                continue
        return Sample(time.monotonic(), mib)


def role_of(process: Any) -> str:
    """Return what a process (`psutil.Process`) that `serve` started does."""
    command = " ".join([process.name(), *process.cmdline()])
    return next((role for sign, role in _ROLES.items() if sign in command), "other")


def slopes(samples: list[Sample], skip: float) -> dict[str, float]:
    """Return how fast each role grew, MiB a minute, and "all" for their sum; least squares.

    Args:
        samples: by time.
        skip: seconds from the first that are left out.
    """
    kept = [one for one in samples if one.at - samples[0].at >= skip] if samples else []
    if len(kept) < 3:
        return {}
    minutes = np.array([one.at for one in kept]) / 60
    series = {role: [one.mib.get(role, 0.0) for one in kept] for role in kept[-1].mib}
    series["all"] = [sum(one.mib.values()) for one in kept]
    return {role: float(np.polyfit(minutes - minutes[0], held, 1)[0]) for role, held in series.items()}
