"""Parts of a data set: by the rows' own `split`, or a validation part cut by picture."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from lvlm_guard.adapters.data.errors import DataError
from lvlm_guard.adapters.data.rows import Row
from lvlm_guard.errors import KnobError


def whole_pictures(rows: Iterable[Row], name: str) -> None:
    """Refuse data in which a picture has rows of two splits; raises `DataError`."""
    of: dict[str, str | None] = {}
    for row in rows:
        if of.setdefault(row.image, row.split) != row.split:
            raise DataError(
                f"{name}: the picture {row.image!r} has rows of the splits {of[row.image]!r} and {row.split!r}. "
                "What is measured on a picture that was trained on says nothing: give all its rows one split."
            )


def of_split(rows: Sequence[Row], split: str, name: str) -> list[Row]:
    """Return the rows of a split; raises `DataError` where there is none."""
    kept = [row for row in rows if row.split == split]
    if not kept:
        found = sorted({str(row.split) for row in rows})
        raise DataError(f"{name} has no row of the split {split!r}; its rows say: {', '.join(found)}.")
    return kept


def cut(rows: Sequence[Row], share: float, seed: int, name: str) -> tuple[list[Row], list[Row]]:
    """Return (rest, validation): all rows of a picture on one side.

    A picture's side depends on its key and the seed alone, so that adding pictures moves no other.

    Raises:
        KnobError: the share is not between 0 and 1.
        DataError: a side would be empty.
    """
    if not 0 < share < 1:
        raise KnobError(f"The validation part is a share between 0 and 1; got {share}. Try 0.1.")
    held = {row.image for row in rows if _place(row.image, seed) < share}
    rest, validation = [r for r in rows if r.image not in held], [r for r in rows if r.image in held]
    if not rest or not validation:
        raise DataError(
            f"{name} has {len({row.image for row in rows})} pictures, too few to put {share:g} of them aside for "
            "validation. Give more, another share, or mark rows with a split of their own."
        )
    return rest, validation


def _place(image: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}\0{image}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
