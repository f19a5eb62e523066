"""Facts of many pictures, with the store of these: parted in three, checked, and read as captions or values."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from lvlm_guard.adapters.data.facts import SOME, SPLITS, Facts, RankRow, as_json, merged
from lvlm_guard.adapters.data.pictures import Files
from lvlm_guard.adapters.data.views import COUNTS, EXPECTED, CaptionData, RankData, Rows
from lvlm_guard.adapters.errors import DataError
from lvlm_guard.files import whole

SHARE = 0.1
"""Of the pictures, that a validation or a test part takes where the data brings none."""


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
