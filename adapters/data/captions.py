"""Captions of pictures, as a data set that a `DataLoader` takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from PIL import Image

from lvlm_guard.adapters.data import parting
from lvlm_guard.adapters.data.errors import DataError
from lvlm_guard.adapters.data.pictured import Pictured
from lvlm_guard.adapters.data.pictures import Bad, OnBad, Store
from lvlm_guard.adapters.data.rows import CaptionRow
from lvlm_guard.adapters.data.summary import Summary

EQUAL = "negatives equal to their caption"
REPEATED = "negatives given twice"


class CaptionItem(NamedTuple):
    """What `CaptionData` loads: a picture and its row."""

    picture: Image.Image
    row: CaptionRow


@dataclass(frozen=True)
class CaptionData(Pictured[CaptionRow]):
    """Captions and the store of their pictures.

    Negatives that equal their caption, but for case and blanks, or each other are left out and counted: in the
    published test files 1.8 % are (specs/adapters.md, 3.4), and they would teach that a true caption is wrong.

    Args:
        rows: at least one; no picture in two splits.
        store: gives the pictures.
        name: where it was read from, for messages.
        on_bad: what becomes of a picture that can't be read.
        dropped: what was left out before, and why.

    Raises:
        DataError: there are no rows, or a picture has rows of two splits.
    """

    rows: Sequence[CaptionRow]
    store: Store
    name: str
    on_bad: OnBad = "raise"
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rows:
            raise DataError(f"{self.name} holds no caption. One row a line is expected; see lvlm_guard.adapters.data.")
        parting.whole_pictures(self.rows, self.name)
        dropped = Counter(self.dropped)
        object.__setattr__(self, "rows", tuple(_cleaned(row, dropped) for row in self.rows))
        object.__setattr__(self, "dropped", dict(dropped))

    def __getitem__(self, index: int) -> CaptionItem | Bad:
        """Return a picture and its row, or with on_bad="skip" a `Bad`; raises `DataError`."""
        row = self.rows[index]
        picture = self.load(row.image)
        return picture if isinstance(picture, Bad) else CaptionItem(picture, row)

    def summary(self, tokenizer: Any = None) -> Summary:
        """Return what the data holds.

        Args:
            tokenizer: of the backbone; with it the longest caption is measured in its tokens.
        """
        kinds = Counter(row.category for row in self.rows if row.category)
        lengths = [len(row.caption.split()) for row in self.rows]
        limit = None
        if tokenizer is not None:
            lengths = [len(ids) for ids in tokenizer([row.caption for row in self.rows])["input_ids"]]
            limit = int(tokenizer.model_max_length)
        longest = max(range(len(self.rows)), key=lengths.__getitem__)
        return Summary(
            self.name,
            pictures=len(self.images),
            rows=len(self.rows),
            kinds=dict(kinds),
            dropped=self.dropped,
            longest=self.rows[longest].caption,
            tokens=None if limit is None else lengths[longest],
            over=0 if limit is None else sum(length > limit for length in lengths),
            lonely=tuple(name for name, count in kinds.items() if count == 1),
        )


def squeezed(text: str) -> str:
    """Return a text as captions are compared: case-folded, blanks squeezed."""
    return " ".join(text.casefold().split())


def _cleaned(row: CaptionRow, dropped: Counter[str]) -> CaptionRow:
    seen = {squeezed(row.caption): EQUAL}
    kept = []
    for k, negative in enumerate(row.negatives):
        reason = seen.get(squeezed(negative))
        if reason is None:
            kept.append(k)
            seen[squeezed(negative)] = REPEATED
        else:
            dropped[reason] += 1
    if len(kept) == len(row.negatives):
        return row
    kinds = tuple(row.kinds[k] for k in kept) if row.kinds else ()
    return replace(row, negatives=tuple(row.negatives[k] for k in kept), kinds=kinds)
