"""Who a process is among several that share work, as torchrun says it: RANK, WORLD_SIZE and LOCAL_RANK."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lvlm_guard.errors import KnobError


@dataclass(frozen=True)
class Place:
    """Which share of the work a process does: every `world`-th part from `rank` on.

    `local` is the rank on its machine, which tells its device. Raises `KnobError` where there is no such rank.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise KnobError(f"There is no share {self.rank} of {self.world}: give 0/{self.world} and on.")

    @classmethod
    def here(cls) -> Place:
        """Return the place that torchrun gave this process, the only one where it gave none; may raise `KnobError`."""
        rank, world = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE"))
        if rank is None or world is None:
            return cls()
        if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
            raise KnobError(f"RANK={rank} and WORLD_SIZE={world} are no rank and number of ranks: unset them.")
        return cls(int(rank), int(world), int(os.environ.get("LOCAL_RANK") or 0))

    @classmethod
    def read(cls, text: str | None) -> Place:
        """Return the place that "1/8" names; of None, `here`; raises `KnobError` where it names none."""
        if text is None:
            return cls.here()
        rank, _, world = text.partition("/")
        if not (rank.isdecimal() and world.isdecimal()):
            raise KnobError(f"{text!r} is no share: write 0/8.")
        return cls(int(rank), int(world), int(os.environ.get("LOCAL_RANK") or 0))

    def device(self, wanted: str) -> str:
        """Return the device of this rank: "auto" and "cuda" are a GPU of its own where there are several."""
        if wanted not in ("auto", "cuda") or self.world == 1:
            return wanted
        import torch

        return f"cuda:{self.local % torch.cuda.device_count()}" if torch.cuda.is_available() else wanted
