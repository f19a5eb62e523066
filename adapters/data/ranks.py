"""Values of pictures, as a data set that a `DataLoader` takes under the ranker's group sampler."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from string import Formatter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lvlm_guard.adapters.data import parting
from lvlm_guard.adapters.data.errors import DataError
from lvlm_guard.adapters.data.pictured import Pictured
from lvlm_guard.adapters.data.pictures import Bad, OnBad, Store
from lvlm_guard.adapters.data.rows import RankRow
from lvlm_guard.adapters.data.summary import Summary
from lvlm_guard.errors import did_you_mean

COUNTS = "Rank the numbers of {object}."
"""The released instruction for counts (arXiv:2412.06760)."""


class RankItem(NamedTuple):
    """What `RankData` loads: a picture, its key, what is asked of it, and the answer."""

    picture: Image.Image
    image: str
    object: str
    value: float
    instruction: str


@dataclass(frozen=True)
class RankData(Pictured[RankRow]):
    """Values and the store of their pictures.

    Args:
        rows: at least one known value; a value for a picture and an object once only.
        store: gives the pictures.
        name: where it was read from, for messages.
        exhaustive: objects of which a picture without a row has 0; of others a missing row means unknown.
        template: the instruction; "{object}" in it stands for the object, or it is one fixed sentence.
        on_bad: what becomes of a picture that can't be read.
        dropped: what was left out before, and why.

    Raises:
        DataError: nothing to train on, two values for one picture and object, a picture in two splits, or a template
            with another field than {object}.
    """

    rows: Sequence[RankRow]
    store: Store
    name: str
    exhaustive: Collection[str] = ()
    template: str = COUNTS
    on_bad: OnBad = "raise"
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not any(row.value is not None for row in self.rows):
            raise DataError(f"{self.name} holds no value. One row a line is expected; see lvlm_guard.adapters.data.")
        _check_template(self.template, self.name)
        parting.whole_pictures(self.rows, self.name)
        seen: dict[tuple[str, str], RankRow] = {}
        dropped = Counter(self.dropped)
        for row in self.rows:
            first = seen.setdefault((row.image, row.object), row)
            if first is not row:
                if first.value != row.value:
                    raise DataError(
                        f"{self.name}: the picture {row.image!r} has {first.value!r} and {row.value!r} of "
                        f"{row.object!r}. Give one value, their mean for instance."
                    )
                dropped["rows given twice"] += 1
        object.__setattr__(self, "rows", tuple(seen.values()))
        object.__setattr__(self, "dropped", dict(dropped))

    def __getitem__(self, wanted: int | tuple[str, str, float]) -> RankItem | Bad:
        """Return a row's picture and value, or those of a group sampler's (image, object, value).

        With on_bad="skip" a picture that can't be read gives a `Bad`; raises `DataError`.
        """
        if isinstance(wanted, int):
            row = self.rows[wanted]
            if row.value is None:
                raise DataError(f"{self.name}: the value of {row.object!r} in {row.image!r} is not known.")
            wanted = (row.image, row.object, row.value)
        image, name, value = wanted
        picture = self.load(image)
        if isinstance(picture, Bad):
            return picture
        return RankItem(picture, image, name, value, self.instruction(name))

    def instruction(self, name: str) -> str:
        """Return what the ranker is asked for an object."""
        return self.template.format(object=name)

    @cached_property
    def objects(self) -> list[str]:
        """What there are values of."""
        return list(dict.fromkeys(row.object for row in self.rows if row.value is not None))

    @cached_property
    def _by_object(self) -> dict[str, dict[str, float | None]]:
        found: dict[str, dict[str, float | None]] = defaultdict(dict)
        for row in self.rows:
            found[row.object][row.image] = row.value
        return dict(found)

    def values(self, name: str) -> tuple[list[str], NDArray[np.float64]]:
        """Return the pictures whose value for an object is known, those with implied zeros too, and the values."""
        given = self._by_object.get(name, {})
        candidates = self.images if name in self.exhaustive else list(given)
        known = {image: given.get(image, 0.0) for image in candidates}
        kept = {image: value for image, value in known.items() if value is not None}
        return list(kept), np.array(list(kept.values()), np.float64)

    def about(self, names: Collection[str]) -> RankData:
        """Return the data with values of these objects alone; pictures of others stay, and what they hold of these.

        Raises:
            DataError: there are no values of one.
        """
        unknown = sorted(set(names) - set(self.objects))
        if unknown:
            raise DataError(
                f"{self.name} has no values of {unknown[0]!r}. {did_you_mean(unknown[0], self.objects)}Known: "
                f"{', '.join(self.objects[:20])}."
            )
        rows = [row if row.object in names else replace(row, value=None) for row in self.rows]
        return replace(self, rows=rows, exhaustive=[name for name in self.exhaustive if name in names])

    def unordered(self) -> list[str]:
        """Return the objects that teach no order: those with fewer than two pictures of unequal value."""
        return [name for name in self.objects if len(set(self.values(name)[1].tolist())) < 2]

    def teaching(self, on_lonely: OnBad = "raise") -> RankData:
        """Return the data without objects that teach no order, or refuse it.

        Raises:
            DataError: `on_lonely` is "raise" and there is such an object, or nothing would be left.
        """
        gone = set(self.unordered())
        if not gone:
            return self
        listed = ", ".join(sorted(gone)[:5]) + (", ..." if len(gone) > 5 else "")
        if on_lonely == "raise" or len(gone) == len(self.objects):
            raise DataError(
                f"{self.name}: {len(gone)} of {len(self.objects)} objects have no two pictures of unequal value, so "
                f"that there is nothing to order: {listed}. Give each pictures that differ, or name it in the header's "
                '"exhaustive" if pictures without a row show none of it'
                + ("." if len(gone) == len(self.objects) else ', or leave such objects out: on_lonely="skip".')
            )
        # Their rows may be what makes a picture known to hold none of an exhaustive object; so they stay as unknown.
        rows = [replace(row, value=None) if row.object in gone else row for row in self.rows]
        kept = [name for name in self.exhaustive if name not in gone]
        dropped = {**self.dropped, "objects that teach no order": len(gone)}
        return replace(self, rows=rows, exhaustive=kept, dropped=dropped)

    def summary(self, tokenizer: Any = None) -> Summary:
        """Return what the data holds; the tokenizer is not used here, so that both kinds are asked alike."""
        values = {name: self.values(name)[1] for name in self.objects}
        pooled = np.concatenate(list(values.values()))
        unknown = sum(row.value is None for row in self.rows)
        return Summary(
            self.name,
            pictures=len(self.images),
            rows=len(pooled),
            kinds={name: int((found != 0).sum()) for name, found in values.items()},
            zeros=float((pooled == 0).mean()),
            dropped={**self.dropped, "values that are not known": unknown},
            lonely=tuple(name for name, found in values.items() if len(found) == 1),
        )


def _check_template(template: str, name: str) -> None:
    try:
        fields = {found for _, found, _, _ in Formatter().parse(template) if found is not None}
    except ValueError as error:
        fields = {str(error)}
    if fields - {"object"} or not template.strip():
        raise DataError(
            f"{name}: the instruction {template!r} can't be filled in. It is a sentence that may hold {{object}} and "
            f"no other braces: {COUNTS!r}."
        )
