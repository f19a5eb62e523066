"""The embedded world's facts: what adapters train on when nothing can be downloaded."""

from __future__ import annotations

from lvlm_guard.adapters.data.dataset import FactsData
from lvlm_guard.adapters.data.facts import facts_of
from lvlm_guard.adapters.data.views import COUNTS, CaptionData, RankData
from lvlm_guard.embedded.captioned import KINDS, SIZES, Pictures, known, told
from lvlm_guard.embedded.catalog import CLASSES

ORDERS = {
    "count": COUNTS,
    "size": "Rank the size of the {object}.",
    "brightness": "Rank the brightness of the {object}.",
}
"""What pictures are ordered by, and how that is asked for."""


def facts(kind: str = "captions", split: str | None = None, n: int | None = None) -> FactsData:
    """Return what is known of a split's pictures; raises `UnknownNameError` where there is no such split or kind.

    Args:
        kind: see `lvlm_guard.embedded.captioned.told`.
        split: "train", "val" or "test"; None for the three together, marked in the facts.
        n: pictures of each split; None for 4 000, 500 and 1 000.
    """
    known(kind, KINDS, "kind of facts")
    keys = [(name, k) for name in ([split] if split else SIZES) for k in range(n or SIZES.get(name, 1000))]
    found = [facts_of(told(kind, name, k), f"{kind}/{name}/{k}") for name, k in keys]
    where = f"the embedded world's {kind}{f' ({split})' if split else ''}"
    exhaustive = CLASSES if kind in ("captions", "count") else ()
    return FactsData(found, Pictures(), where, exhaustive, template=ORDERS.get(kind, COUNTS))


def captions(split: str | None = None, n: int | None = None) -> CaptionData:
    """Return captions of a split, with what is known of their pictures; see `facts`."""
    return facts("captions", split, n).captions


def ranks(split: str | None = None, by: str = "count", n: int | None = None) -> RankData:
    """Return values of a split's pictures; see `facts`."""
    known(by, ORDERS, "order")
    return facts(by, split, n).ranks
