"""The first stage of both models: a vision tower learns to say what covers each patch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from embedded_training.build import PATCH, WIDTH, pixels
from embedded_training.labels import patch_labels
from embedded_training.loop import Trainee, cut_out, optimizer
from lvlm_guard.embedded.catalog import N_OBJECTS, N_PROPS
from lvlm_guard.embedded.world import Scenes

LABELS = 1 + N_OBJECTS + N_PROPS  # background, objects, props
CUTOUT = 0.35
BACKGROUND_WEIGHT = 0.3  # half of all patches are background


def patch_batch(rng: np.random.Generator, scenes: Scenes, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (pixels (size, 3, 96, 96), patch labels (size, 36), objects in view (size, 54) 0/1)."""
    rows = [int(i) for i in rng.integers(len(scenes), size=size)]
    cuts = [cut_out(rng, scenes, i, CUTOUT) for i in rows]
    keeps = [keep for keep, _ in cuts]
    present = np.zeros((size, N_OBJECTS), np.float32)
    for row, (i, keep) in enumerate(zip(rows, keeps, strict=True)):
        present[row, scenes.visible(i, keep)[0]] = 1
    labels = patch_labels(scenes, rows, PATCH, keeps)
    return pixels(np.stack([x for _, x in cuts])), torch.as_tensor(labels), torch.as_tensor(present)


def patch_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return (cross entropy, accuracy on patches that are not background) of (n, 91) logits."""
    weight = torch.ones(logits.shape[-1])
    weight[0] = BACKGROUND_WEIGHT
    right = (logits.argmax(-1) == labels)[labels > 0].float().mean()
    return F.cross_entropy(logits, labels, weight=weight), right


def train_tower(
    trainee: Trainee,
    model: nn.Module,
    tower: nn.Module,
    features: Callable[[Tensor], Tensor],
    scenes: Scenes,
    *,
    steps: int,
    batch: int,
    rate: float,
) -> None:
    """Train `tower`: each patch names what covers it, CLS names all objects in view.

    Args:
        model: the whole model, saved with the stage.
        features: pixels to the tower's (batch, 1 + 36, width), CLS first.
    """
    patch_head, cls_head = nn.Linear(WIDTH, LABELS), nn.Linear(WIDTH, N_OBJECTS)
    modules: dict[str, nn.Module] = {"model": model, "patch_head": patch_head, "cls_head": cls_head}
    opt = optimizer([*tower.parameters(), *patch_head.parameters(), *cls_head.parameters()], rate)

    def step(_: int) -> tuple[Tensor, dict[str, Tensor]]:
        x, labels, present = patch_batch(trainee.rng, scenes, batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = features(x)
            patches, overall = patch_head(hidden[:, 1:]).float(), cls_head(hidden[:, 0]).float()
        ce, right = patch_loss(patches.flatten(0, 1), labels.flatten())
        several = F.binary_cross_entropy_with_logits(overall, present, pos_weight=torch.tensor(5.0))
        return ce + several, {"ce": ce, "fg": right, "cls": several}

    trainee.train("tower", modules, opt, step, steps=steps, rate=rate)
