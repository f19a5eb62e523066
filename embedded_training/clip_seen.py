"""What the tiny CLIP is trained on: pictures of both worlds, captions that say little, and which captions are true.

A caption names some of the objects, seldom their colour or number. So the model learns objects well and the rest
weakly, as web captions make CLIP do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedded_training.clip_parts import PATCH
from embedded_training.labels import patch_labels
from lvlm_guard.embedded import text, world
from lvlm_guard.embedded.captioned import scene
from lvlm_guard.embedded.catalog import CLASSES, N_OBJECTS
from lvlm_guard.embedded.tinted import COLOURS, Group, listing
from lvlm_guard.embedded.world import SIZE

NAMED = 0.25  # how often a caption says the number, how often the colour, of a group it names
GRID = SIZE // PATCH
COVERED = 0.12  # share of a patch that an object must cover to be what the patch shows
_TINTS = list(COLOURS)


@dataclass(frozen=True)
class Claim:
    """What a caption says of one object: at least `least`, and if `exact` no more, of this tint if any."""

    index: int
    least: int
    exact: bool
    tint: int  # of `COLOURS`; -1: the caption says none


@dataclass(frozen=True)
class Pool:
    """Pictures and what they show.

    Args:
        image: uint8 (n, 96, 96, 3).
        patches: (n, 64), 0 for the ground, objects from 1.
        count: (n, 54), how many of each object.
        tint: (n, 54), of `COLOURS`; -1 where the object has its own colours or is absent.
    """

    image: NDArray[np.uint8]
    patches: NDArray[np.int64]
    count: NDArray[np.int8]
    tint: NDArray[np.int8]

    def caption(self, rng: np.random.Generator, i: int) -> tuple[str, list[Claim]]:
        """Return a true caption of picture i, of all its objects or some, and what it claims."""
        present = [int(o) for o in rng.permutation(np.flatnonzero(self.count[i]))]
        if rng.random() < 0.5:
            present = present[: int(rng.integers(1, len(present) + 1))]
        phrases, claims = [], []
        for o in present:
            count, tint = int(self.count[i, o]), int(self.tint[i, o])
            number, colour = rng.random() < NAMED, rng.random() < NAMED and tint >= 0
            group = Group(CLASSES[o], count, _TINTS[tint] if tint >= 0 else None)
            phrases.append(group.phrase(number=number, colour=colour))
            claims.append(Claim(o, count if number else min(count, 2), number and count > 1, tint if colour else -1))
        return _worded(rng, phrases, [CLASSES[o] for o in present]), claims

    def true_of(self, rows: Sequence[int], claims: Sequence[Sequence[Claim]]) -> NDArray[np.bool_]:
        """Return which caption is true of which picture, (captions, rows)."""
        count, tint = self.count[list(rows)], self.tint[list(rows)]
        true = np.ones((len(claims), len(rows)), bool)
        for k, caption in enumerate(claims):
            for claim in caption:
                seen = count[:, claim.index]
                true[k] &= seen == claim.least if claim.exact else seen >= claim.least
                if claim.tint >= 0:
                    true[k] &= tint[:, claim.index] == claim.tint
        return true


def _worded(rng: np.random.Generator, phrases: Sequence[str], names: Sequence[str]) -> str:
    kind = rng.random()
    if len(names) == 1 and kind < 0.2 and phrases[0] == text.article(names[0]):
        return text.question(names[0])  # what `vote` and AGLA ask of an object in view
    if kind < 0.6:
        return "a photo of " + listing(phrases)
    return listing(phrases) if kind < 0.85 else "the image shows " + " , ".join(phrases) + " ."


def tinted(n: int) -> Pool:
    """Draw n pictures of the world with colours and counts, from seeds that no other split has."""
    image, patches = np.empty((n, SIZE, SIZE, 3), np.uint8), np.zeros((n, GRID * GRID), np.int64)
    count, tint = np.zeros((n, N_OBJECTS), np.int8), np.full((n, N_OBJECTS), -1, np.int8)
    for i in range(n):
        drawn = scene("captions", "pretrain", i)
        image[i] = drawn.image
        where = [CLASSES.index(group.name) for group in drawn.groups]
        for o, group in zip(where, drawn.groups, strict=True):
            count[i, o] = group.count
            tint[i, o] = _TINTS.index(group.colour) if group.colour else -1
        cells = drawn.owner.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(GRID * GRID, -1)
        covered = np.stack([(cells == g).mean(1) for g in range(len(where))], 1)
        best = covered.argmax(1)
        patches[i] = np.where(covered.max(1) >= COVERED, np.array(where)[best] + 1, 0)
    return Pool(image, patches, count, tint)


def plain(n: int) -> Pool:
    """Draw the first n training scenes of `lvlm_guard.embedded.world` that show anything."""
    scenes = world.scenes("train", n)
    seen = [scenes.visible(i)[0] for i in range(n)]
    rows = [i for i in range(n) if seen[i]]
    count = np.zeros((len(rows), N_OBJECTS), np.int8)
    for k, i in enumerate(rows):
        count[k, seen[i]] = 1
    patches = patch_labels(scenes, rows, PATCH)
    patches[patches > N_OBJECTS] = 0  # props, which no text names
    return Pool(scenes.image[rows], patches, count, np.full_like(count, -1))


def joined(pools: Sequence[Pool]) -> Pool:
    """Return several pools as one."""
    return Pool(*(np.concatenate([getattr(p, name) for p in pools]) for name in ("image", "patches", "count", "tint")))
