"""Measure a CLIP on held-out pictures of the embedded worlds: `python -m embedded_training.clip_accept [FOLDER]`.

What adapters start from: recall both ways among true captions, the same with every caption's swaps in the gallery,
how well true captions stand above swaps of each kind, and how well "a photo of a dog" tells pictures with dogs from
others in the scenes that the guard is shown on. Intervals are 95 %, over pictures drawn again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from lvlm_guard.adapters.data.read import world_facts
from lvlm_guard.adapters.evaluation.metrics import AT, auroc, ranks
from lvlm_guard.adapters.loading import TINY
from lvlm_guard.embedded import world
from lvlm_guard.embedded.captioned import Pictures
from lvlm_guard.embedded.text import article

DRAWS = 1000  # of the bootstrap
Interval = tuple[float, float, float]
Array = NDArray[np.float64]


@torch.no_grad()
def image_features(model: CLIPModel, processor: CLIPProcessor, images: Sequence[Image.Image]) -> Tensor:
    """Return (n, joint), of length 1."""
    found = []
    for start in range(0, len(images), 64):
        inputs = processor.image_processor(list(images[start : start + 64]), return_tensors="pt")
        seen = model.vision_model(inputs["pixel_values"]).pooler_output
        found.append(torch.nn.functional.normalize(model.visual_projection(seen), dim=-1))
    return torch.cat(found)


@torch.no_grad()
def text_features(model: CLIPModel, processor: CLIPProcessor, texts: Sequence[str]) -> Tensor:
    """Return (n, joint), of length 1."""
    found = []
    for start in range(0, len(texts), 256):
        inputs = processor.tokenizer(list(texts[start : start + 256]), padding=True, return_tensors="pt")
        read = model.text_model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).pooler_output
        found.append(torch.nn.functional.normalize(model.text_projection(read), dim=-1))
    return torch.cat(found)


def interval(n: int, figure: Callable[[NDArray[np.int64]], float], seed: int = 0) -> Interval:
    """Return (figure, low, high): 95 %, percentile bootstrap over `n` pictures.

    Args:
        n: how many pictures there are.
        figure: gives the figure of chosen pictures, [k] indices.
    """
    rng = np.random.default_rng(seed)
    drawn = [figure(rng.integers(0, n, n)) for _ in range(DRAWS)]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return figure(np.arange(n)), float(low), float(high)


def measure(model: CLIPModel, processor: CLIPProcessor, n: int = 1000) -> dict[str, Interval]:
    """Return figure -> (value, low, high), on the first n test pictures of the world of colours and counts.

    Recall draws pictures again as queries; the gallery stays whole.
    """
    data = world_facts("captions", "test", n).captions
    pictures = Pictures()
    seen = image_features(model, processor, [pictures.load(image) for image in data.images])
    true = (seen @ text_features(model, processor, [row.caption for row in data.rows]).t()).numpy()
    kinds = np.array([kind for row in data.rows for kind in row.kinds])
    of = np.array([i for i, row in enumerate(data.rows) for _ in row.negatives])
    wrong = (seen @ text_features(model, processor, [text for row in data.rows for text in row.negatives]).t()).numpy()
    right, swaps = np.diag(true).astype(np.float64), wrong[of, np.arange(len(of))].astype(np.float64)
    itself = np.eye(n, dtype=bool)
    places = {
        "image to text": ranks(true, itself),
        "text to image": ranks(true.T, itself),
        "image to text among swaps": ranks(np.hstack([true, wrong]), np.hstack([itself, np.zeros_like(wrong, bool)])),
    }
    figures: dict[str, Interval] = {}
    for name, place in places.items():
        for k in AT:
            hit = place <= k
            figures[f"R@{k} {name}"] = interval(n, lambda rows, hit=hit: float(hit[rows].mean()))  # type: ignore[misc]
    for kind in ["", *dict.fromkeys(kinds.tolist())]:
        chosen = (kinds == kind) if kind else np.ones(len(kinds), bool)
        figures[f"AUROC of swaps{f' of {kind}' if kind else ''}"] = _swaps(right, swaps[chosen], of[chosen])
        best = swaps[chosen] < right[of[chosen]]
        rows = np.unique(of[chosen])
        whole = np.array([best[of[chosen] == i].all() for i in rows])
        figures[f"caption above its swaps{f' of {kind}' if kind else ''}"] = interval(
            len(rows),
            lambda drawn, whole=whole: float(whole[drawn].mean()),  # type: ignore[misc]
        )
    return figures


def _swaps(right: Array, swaps: Array, of: NDArray[np.int64]) -> Interval:
    """Return the AUROC of captions against swaps, of the pictures that have such swaps."""
    own = [np.flatnonzero(of == i) for i in range(len(right))]
    rows = np.flatnonzero([len(found) > 0 for found in own])

    def figure(drawn: NDArray[np.int64]) -> float:
        chosen = rows[drawn]
        return auroc(right[chosen], swaps[np.concatenate([own[i] for i in chosen])])

    return interval(len(rows), figure)


def presence(model: CLIPModel, processor: CLIPProcessor, n: int = 300) -> Interval:
    """Return the AUROC of "a photo of a dog" for pictures with and without dogs, over all objects.

    On the first n test scenes of `lvlm_guard.embedded.world`, with the props that mislead its LVLM.
    """
    scenes = world.scenes("test", n)
    seen = image_features(model, processor, [Image.fromarray(image) for image in scenes.image])
    texts = [f"a photo of {article(name)}" for name in world.CLASSES]
    scores = (seen @ text_features(model, processor, texts).t()).numpy().astype(np.float64)
    shown = np.zeros(scores.shape, bool)
    for i in range(n):
        shown[i, scenes.visible(i)[0]] = True
    return interval(n, lambda rows: auroc(scores[rows][shown[rows]], scores[rows][~shown[rows]]))


def main(argv: list[str] | None = None) -> int:
    """Measure as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m embedded_training.clip_accept", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=TINY)
    parser.add_argument("--pictures", type=int, default=1000)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = CLIPModel.from_pretrained(args.folder).eval()
    processor = CLIPProcessor.from_pretrained(args.folder)
    figures = measure(model, processor, args.pictures)
    figures["AUROC of objects in plain scenes"] = presence(model, processor)
    for name, (value, low, high) in figures.items():
        print(f"{name:44} {value:.3f} [{low:.3f}, {high:.3f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
