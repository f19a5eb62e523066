"""What a data set holds, in a few lines, before hours are spent on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Summary:
    """Counts of a data set; `str()` gives them as lines.

    Args:
        name: where it was read from.
        pictures: different ones.
        rows: captions, or known values with those that absence makes 0.
        kinds: what there is how often: objects, or categories.
        zeros: share of values that are 0; None for captions.
        dropped: what was left out and why: {"negatives equal to their caption": 3}.
        longest: the longest caption; None for values.
        tokens: of the longest, with begin and end; None where no tokenizer was given.
        over: captions that are longer than the tokenizer's limit.
        lonely: objects or categories with a single row.
    """

    name: str
    pictures: int
    rows: int
    kinds: Mapping[str, int] = field(default_factory=dict)
    zeros: float | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    longest: str | None = None
    tokens: int | None = None
    over: int = 0
    lonely: tuple[str, ...] = ()

    def __str__(self) -> str:
        what = "captions" if self.zeros is None else "values"
        lines = [f"{self.name}: {self.pictures:,} pictures, {self.rows:,} {what}"]
        if self.kinds:
            most = sorted(self.kinds.items(), key=lambda pair: -pair[1])
            shown = ", ".join(f"{name} {count:,}" for name, count in most[:8])
            named = "categories" if self.zeros is None else "objects"
            lines.append(f"  {len(most):,} {named}: {shown}{', ...' if len(most) > 8 else ''}")
        if self.zeros is not None:
            lines.append(f"  {self.zeros:.1%} of the values are 0")
        if self.longest is not None:
            size = f"{len(self.longest.split())} words" + (f", {self.tokens} tokens" if self.tokens is not None else "")
            lines.append(f"  longest caption: {size}" + (f"; {self.over:,} are over the limit" if self.over else ""))
        lines += [f"  left out: {count:,} {reason}" for reason, count in self.dropped.items() if count]
        if self.lonely:
            lines.append(f"  only one row each: {', '.join(self.lonely[:8])}{', ...' if len(self.lonely) > 8 else ''}")
        return "\n".join(lines)
