"""What a scene with a hole in it still shows: labels that only training reads."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lvlm_guard.embedded.catalog import N_OBJECTS
from lvlm_guard.embedded.world import ITEMS, SIZE, Scenes


def random_keep(rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return a smooth random mask, (96, 96), that keeps 45 to 100 % and looks like an AGLA mask."""
    k = int(rng.choice((5, 6, 6, 8)))
    noise = Image.fromarray(rng.random((k, k)).astype(np.float32))
    smooth = np.asarray(noise.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    return np.asarray(smooth >= np.quantile(smooth, 1 - rng.uniform(0.45, 1.0)))


def partly(scenes: Scenes, i: int, keep: NDArray[np.bool_] | None) -> tuple[list[int], list[int]]:
    """Return the objects of scene i that the mask hides (under 10 % left) and halves (10 to 65 % left)."""
    if keep is None:
        return [], []
    whole, left = scenes.seen(i), scenes.seen(i, keep)
    hidden, halved = [], []
    for k in np.flatnonzero(scenes.items[i, :, 0] == 0).tolist():
        share = left[k] / max(1, whole[k])
        if share < 0.1:
            hidden.append(int(scenes.items[i, k, 1]))
        elif share < 0.65:
            halved.append(int(scenes.items[i, k, 1]))
    return hidden, halved


def patch_labels(
    scenes: Scenes, rows: Sequence[int], patch: int, keeps: Sequence[NDArray[np.bool_] | None] | None = None
) -> NDArray[np.int64]:
    """Return what covers each patch most, if at least 12 % of it: (len(rows), patches).

    0 is the background, then the objects from 1, then the props from 1 + 54.
    """
    owner = scenes.owner[list(rows)].astype(np.int64) + 1
    for row, keep in enumerate(keeps or ()):
        if keep is not None:
            owner[row][~keep] = 0
    n, grid = len(owner), SIZE // patch
    cell = owner.reshape(n, grid, patch, grid, patch).transpose(0, 1, 3, 2, 4).reshape(n * grid * grid, -1)
    slots = cell + (ITEMS + 1) * np.arange(len(cell))[:, None]
    counts = np.bincount(slots.ravel(), minlength=len(cell) * (ITEMS + 1)).reshape(-1, ITEMS + 1)[:, 1:]
    best = counts.argmax(1)
    items = scenes.items[list(rows)].astype(np.int64)
    labels = np.where(items[..., 0] < 0, 0, 1 + items[..., 1] + np.where(items[..., 0] == 1, N_OBJECTS, 0))
    found = np.take_along_axis(labels, best.reshape(n, -1), 1)
    return np.where((counts.max(1) >= 0.12 * patch * patch).reshape(n, -1), found, 0)
