"""Facts of many pictures, with the store of these: parted in three, checked, and read as captions or as values."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lvlm_guard.adapters.data.facts import SOME, SPLITS, CaptionRow, Facts, RankRow, as_json, merged
from lvlm_guard.adapters.data.pictures import Bad, Files, OnBad, Store
from lvlm_guard.adapters.errors import DataError
from lvlm_guard.errors import ImageError, did_you_mean
from lvlm_guard.files import whole

COUNTS = "Rank the numbers of {object}."
"""The released instruction for counts (arXiv:2412.06760)."""

EXPECTED = "One picture a line is expected; see lvlm_guard.adapters.data."

SHARE = 0.1
"""Of the pictures, that a validation or a test part takes where the data brings none."""

EQUAL = "negatives equal to a true caption"
REPEATED = "negatives given twice"

Row = TypeVar("Row", Facts, CaptionRow, RankRow)


@dataclass(frozen=True)
class Rows(Generic[Row]):
    """What is known of pictures, and the store of these.

    Args:
        rows: at least one, else `DataError`.
        store: gives the pictures.
        name: where it was read from, for messages.
        exhaustive: objects that a picture does not show unless its rows or facts say so; of others nothing is known.
        on_bad: what becomes of a picture that can't be read.
        dropped: what was left out before, and why.
    """

    rows: Sequence[Row]
    store: Store
    name: str
    exhaustive: Collection[str] = ()
    on_bad: OnBad = "raise"
    dropped: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def images(self) -> list[str]:
        """The keys of the pictures, each once, in order of the rows."""
        return list(dict.fromkeys(row.image for row in self.rows))

    def with_rows(self, rows: Sequence[Row], reason: str = "", count: int = 0) -> Self:
        """Return the same with other rows; what was left out is counted where a reason is given."""
        return replace(self, rows=tuple(rows), dropped={**self.dropped, reason: count} if reason else self.dropped)

    def load(self, image: str) -> Image.Image | Bad:
        """Return a picture by its key, or where it can't be read, and on_bad is "skip", a `Bad`; raises `DataError`."""
        try:
            return self.store.load(image)
        except ImageError as error:
            if self.on_bad == "skip":
                return Bad(image, str(error))
            raise DataError(
                f"The picture {image!r} of {self.store} can't be read: {error} To go on without such "
                'pictures, which are then counted, give on_bad="skip" (--on-bad skip).'
            ) from error

    @property
    def digest(self) -> str:
        """What tells this data from other: 16 hex digits of all rows."""
        told = hashlib.sha256()
        for row in self.rows:  # one by one: all together are hundreds of megabytes
            told.update(repr(row).encode())
        return told.hexdigest()[:16]

    def part(self, split: str) -> Self:
        """Return the rows of a split; raises `DataError` where there is none."""
        kept = [row for row in self.rows if row.split == split]
        if not kept:
            found = sorted({str(row.split) for row in self.rows})
            raise DataError(
                f"{self.name} has no row of the split {split!r}, so that nothing can be done on it; its rows say: "
                f"{', '.join(found)}. Mark rows with a split, or give more pictures."
            )
        return self.with_rows(kept)

    def parted(self) -> tuple[Self, Self]:
        """Return (train, validation); raises `DataError` where one of them is empty."""
        return self.part("train"), self.part("val")

    def without(self, bad: Sequence[Bad]) -> Self:
        """Return what is left when the rows of these pictures go, counted; raises `DataError` where nothing is."""
        gone = {item.image for item in bad} & set(self.images)
        if not gone:
            return self
        if gone >= set(self.images):
            raise DataError(f"{self.name}: none of its {len(gone)} pictures can be read. {bad[0].reason}")
        kept = [row for row in self.rows if row.image not in gone]
        return self.with_rows(kept, "pictures that can't be read", len(gone))


@dataclass(frozen=True)
class CaptionData(Rows[CaptionRow]):
    """Captions, with what is known of the objects in their pictures.

    Negatives that equal a true caption of the picture, but for case and blanks, or each other are left out and
    counted: in the published test files 1.8 % are, and they would teach that a true caption is wrong.

    `facts` are by picture; of the objects of one that is missing its captions alone tell.
    """

    facts: Mapping[str, Facts] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.rows:
            raise DataError(f"{self.name} holds no caption. {EXPECTED}")
        dropped = Counter(self.dropped)
        cleaned = tuple(_cleaned(row, self.captions_of[row.image], dropped) for row in self.rows)
        object.__setattr__(self, "rows", cleaned)
        object.__setattr__(self, "dropped", dict(dropped))

    @cached_property
    def captions_of(self) -> Mapping[str, tuple[str, ...]]:
        """Picture -> all its captions."""
        found: dict[str, list[str]] = defaultdict(list)
        for row in self.rows:
            found[row.image].append(row.caption)
        return {image: tuple(said) for image, said in found.items()}

    def objects(self, image: str) -> tuple[frozenset[str], frozenset[str]]:
        """Return the objects that a picture is known to show, and those that it is known not to; others are unknown."""
        facts = self.facts.get(image)
        if facts is None:
            return frozenset(), frozenset()
        there = frozenset(name for name, state in facts.objects.items() if state is not None and state > 0)
        absent = {name for name, state in facts.objects.items() if state == 0}
        return there, frozenset(absent | (set(self.exhaustive) - set(facts.objects)))


def squeezed(text: str) -> str:
    """Return a text as captions are compared: case-folded, blanks squeezed."""
    return " ".join(text.casefold().split())


def _cleaned(row: CaptionRow, true: Sequence[str], dropped: Counter[str]) -> CaptionRow:
    seen = dict.fromkeys(map(squeezed, true), EQUAL)
    kept = []
    for k, negative in enumerate(row.negatives):
        reason = seen.setdefault(squeezed(negative), "")
        if reason:
            dropped[reason] += 1
        else:
            kept.append(k)
            seen[squeezed(negative)] = REPEATED
    if len(kept) == len(row.negatives):
        return row
    kinds = tuple(row.kinds[k] for k in kept) if row.kinds else ()
    return replace(row, negatives=tuple(row.negatives[k] for k in kept), kinds=kinds)


@dataclass(frozen=True)
class RankData(Rows[RankRow]):
    """Values of objects in pictures, at least one known, and of a picture and an object one alone.

    The `template` is the instruction; "{object}" in it stands for the object, or it is one fixed sentence. One with
    another field raises `DataError`.
    """

    template: str = COUNTS

    def __post_init__(self) -> None:
        if not any(row.value is not None for row in self.rows):
            raise DataError(f"{self.name} holds no value. {EXPECTED}")
        try:
            named = {found for _, found, _, _ in Formatter().parse(self.template) if found is not None}
        except ValueError as error:
            named = {str(error)}
        if named - {"object"} or not self.template.strip():
            raise DataError(
                f"{self.name}: the instruction {self.template!r} can't be filled in. It is a sentence that may hold "
                f"{{object}} and no other braces: {COUNTS!r}."
            )

    def instruction(self, name: str) -> str:
        """Return what the ranker is asked for an object."""
        return self.template.format(object=name)

    @cached_property
    def _by_object(self) -> dict[str, dict[str, float | None]]:
        found: dict[str, dict[str, float | None]] = defaultdict(dict)
        for row in self.rows:
            found[row.object][row.image] = row.value
        return dict(found)

    @cached_property
    def objects(self) -> list[str]:
        """What there are values of."""
        return list(dict.fromkeys(row.object for row in self.rows if row.value is not None))

    def values(self, name: str) -> tuple[list[str], NDArray[np.float64]]:
        """Return the pictures whose value for an object is known, those with implied zeros too, and the values."""
        given = self._by_object.get(name, {})
        candidates = self.images if name in self.exhaustive else list(given)
        known = {image: given.get(image, 0.0) for image in candidates}
        kept = {image: value for image, value in known.items() if value is not None}
        return list(kept), np.array(list(kept.values()), np.float64)

    def about(self, names: Collection[str]) -> RankData:
        """Return the data with values of these objects alone; pictures of others stay, and what they hold of these.

        Raises `DataError` where there are no values of one.
        """
        if unknown := sorted(set(names) - set(self.objects)):
            raise DataError(
                f"{self.name} has no values of {unknown[0]!r}. {did_you_mean(unknown[0], self.objects)}Known: "
                f"{', '.join(self.objects[:20])}."
            )
        return self._only(names)

    def teaching(self, on_lonely: OnBad = "raise") -> RankData:
        """Return the data without what teaches no order; raises `DataError` where that isn't allowed, or all do."""
        gone = {name for name in self.objects if len(set(self.values(name)[1].tolist())) < 2}
        if not gone:
            return self
        listed = ", ".join(sorted(gone)[:5]) + (", ..." if len(gone) > 5 else "")
        if on_lonely == "raise" or len(gone) == len(self.objects):
            raise DataError(
                f"{self.name}: {len(gone)} of {len(self.objects)} objects have no two pictures of unequal value, so "
                f"that there is nothing to order: {listed}. Give each pictures that differ, or name it in the header's "
                '"exhaustive" if pictures that don\'t tell of it show none'
                + ("." if len(gone) == len(self.objects) else ', or leave such objects out: on_lonely="skip".')
            )
        return self._only(set(self.objects) - gone, "objects that teach no order", len(gone))

    def _only(self, names: Collection[str], *why: Any) -> RankData:
        # rows of others may be what makes a picture known to hold none of an exhaustive object; they stay as unknown
        rows = [row if row.object in names else replace(row, value=None) for row in self.rows]
        return replace(self.with_rows(rows, *why), exhaustive=[n for n in self.exhaustive if n in names])


@dataclass(frozen=True)
class FactsData(Rows[Facts]):
    """Facts of pictures; several of one are merged, or raise `DataError` where they contradict each other.

    The `template` is what a ranker is asked, see `RankData`.
    """

    template: str = COUNTS

    def __post_init__(self) -> None:
        if not self.rows:
            raise DataError(f"{self.name} tells of no picture. {EXPECTED}")
        found: dict[str, Facts] = {}
        for facts in self.rows:
            known = found.get(facts.image)
            found[facts.image] = facts if known is None else merged(known, facts, self.name)
        object.__setattr__(self, "rows", tuple(found.values()))

    @property
    def facts(self) -> Sequence[Facts]:
        """What is known, of each picture once."""
        return self.rows

    @cached_property
    def captions(self) -> CaptionData:
        """The captions, with what is known of their pictures; raises `DataError` where there is none."""
        rows = [replace(row, split=facts.split) for facts in self.facts for row in facts.captions]
        by_image = {facts.image: facts for facts in self.facts}
        exhaustive = frozenset(self.exhaustive)
        return CaptionData(rows, self.store, self.name, exhaustive, self.on_bad, self.dropped, by_image)

    @cached_property
    def ranks(self) -> RankData:
        """The values of objects; raises `DataError` where there is none. What nobody counted is unknown."""
        rows: list[RankRow] = []
        for facts in self.facts:
            values = {name: None if value == SOME else value for name, value in facts.objects.items()}
            if not values and self.exhaustive:  # so that the picture is known to hold none of anything
                values = {next(iter(self.exhaustive)): 0.0}
            rows += [RankRow(facts.image, n, v, facts.weights.get(n), facts.split) for n, v in values.items()]
        return RankData(rows, self.store, self.name, self.exhaustive, self.on_bad, self.dropped, self.template)

    def divided(self, share: float = SHARE, seed: int = 0) -> FactsData:
        """Return the same with every picture in a split; validation and test are cut from the rest where missing.

        A picture's part depends on its key and the seed alone, so that adding pictures moves no other. Raises
        `DataError` where there are too few to cut.
        """
        cut = [split for split in ("val", "test") if split not in {facts.split for facts in self.facts}]

        def part(facts: Facts) -> str:
            if facts.split in ("val", "test"):
                return facts.split
            digest = hashlib.sha256(f"{seed}\0{facts.image}".encode()).digest()
            place = int.from_bytes(digest[:8], "big") / 2**64
            return next((split for k, split in enumerate(cut) if k * share <= place < (k + 1) * share), "train")

        made = [replace(facts, split=part(facts)) for facts in self.facts]
        if {"train", "val"} - {facts.split for facts in made}:
            raise DataError(
                f"{self.name} has {len(made)} pictures, too few to put {share:g} of them aside for validation and as "
                "many for the test. Give more, or mark pictures with a split of their own."
            )
        return self.with_rows(made)

    def first(self, most: int | None) -> FactsData:
        """Return the first training pictures alone; other parts stay whole."""
        learnt = [facts.image for facts in self.facts if facts.split in (None, "train")]
        gone = set(learnt[most:]) if most is not None else set()
        return self.with_rows([facts for facts in self.facts if facts.image not in gone]) if gone else self

    def checked(self) -> FactsData:
        """Return the data without missing pictures; raises `DataError` where that isn't allowed, or all are."""
        if not isinstance(self.store, Files):
            return self
        root = self.store.root
        gone = {image: None for image in self.images if not (root / image).is_file()}
        if not gone:
            return self
        if self.on_bad == "raise" or len(gone) == len(self.facts):
            raise DataError(
                f"{len(gone)} of the {len(self.facts)} pictures of {self.name} are not there, "
                f"{str(root / next(iter(gone)))!r} for one. Paths are read from {str(root)!r}: give the pictures' "
                "folder as `images` (--images)."
                + ("" if len(gone) == len(self.facts) else ' To go on without them, counted: on_bad="skip".')
            )
        kept = [facts for facts in self.facts if facts.image not in gone]
        return self.with_rows(kept, "pictures that are not there", len(gone))

    def fitting(self, pieces: Callable[[str], int], most: int) -> FactsData:
        """Return the data without captions that a CLIP can't read whole; raises `DataError` as `checked` does.

        Args:
            pieces: a caption's length in the CLIP's tokens.
            most: tokens that it reads, without begin, end and prompts.
        """
        long = {row.caption: n for f in self.facts for row in f.captions if (n := pieces(row.caption)) > most}
        if not long:
            return self
        kept = [replace(f, captions=tuple(row for row in f.captions if row.caption not in long)) for f in self.facts]
        if self.on_bad == "raise" or not any(facts.captions for facts in kept):
            first, length = max(long.items(), key=lambda pair: pair[1])
            raise DataError(
                f"{len(long)} captions of {self.name} are longer than the {most} tokens that this CLIP reads beside "
                f"its prompts; the longest has {length}: {first[:60]!r}. Shorten them, or leave them out, counted: "
                'on_bad="skip" (--on-bad skip).'
            )
        return self.with_rows(kept, "captions beyond the context", len(long))

    def summary(self) -> str:
        """Return what the data holds, in a few lines, before hours are spent on it."""
        parts = Counter(facts.split or "no split" for facts in self.facts)
        shares = ", ".join(f"{parts[split]:,} {split}" for split in (*SPLITS, "no split") if parts[split])
        told = [f"{self.name}: {len(self.facts):,} pictures ({shares})"]
        if captions := [row.caption for facts in self.facts for row in facts.captions]:
            longest = max(len(caption.split()) for caption in captions)
            told.append(f"  {len(captions):,} captions of up to {longest} words")
        often, states = Counter[str](), Counter[str]()
        for facts in self.facts:
            for name, state in facts.objects.items():
                states["unknown" if state is None else "there" if state else "absent"] += 1
                often[name] += bool(state)
            states["absent"] += sum(name not in facts.objects for name in self.exhaustive)
        if states.total() or self.exhaustive:
            shown = [f"{name} {count:,}" for name, count in often.most_common(9) if count]
            many = f"  {sum(count > 0 for count in often.values()):,} objects: {', '.join(shown[:8])}"
            told.append(many + (", ..." if len(shown) > 8 else ""))
            known = ", ".join(f"{count:,} {state}" for state, count in states.items())
            told.append(f"  {known}; all others unknown")
        told += [f"  left out: {count:,} {reason}" for reason, count in self.dropped.items() if count]
        return "\n".join(told)

    def write(self, path: str | Path) -> Path:
        """Write a file that `open_facts` reads; it appears whole or not at all."""
        header = {"exhaustive": list(self.exhaustive), "instruction": self.template}
        with whole(Path(path)) as part, part.open("w", encoding="utf-8") as out:
            out.write(json.dumps(header, ensure_ascii=False) + "\n")
            out.writelines(as_json(facts) + "\n" for facts in self.facts)
        return Path(path)
