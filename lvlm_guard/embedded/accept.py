"""Measure the trained models against their acceptance figures: `python -m lvlm_guard.embedded.accept`.

Works on the validation split unless told otherwise; nothing may be tuned on test. The mask is tested and not only the
models, because a better matcher can give a worse mask: in a sketch with ITM accuracy .97 the words of a question rested
on the picture's class token, which the mask drops, and its map was no better than chance.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from lvlm_guard.embedded import MATCHER, MODEL
from lvlm_guard.embedded.build import llava_processor
from lvlm_guard.embedded.catalog import CLASSES
from lvlm_guard.embedded.questions import MODES, Question, matcher_logits, pope_set
from lvlm_guard.embedded.text import question
from lvlm_guard.embedded.world import Scenes
from lvlm_guard.matching.blip_itm import BlipITM
from lvlm_guard.matching.match import Match
from lvlm_guard.matching.relevance import heat_map, keep_mask

ALPHA, BETA = 2.0, 0.5  # AGLA's reference setting, fixed beforehand
BATCH = 64

# name: (lowest, highest) value accepted
LIMITS: dict[str, tuple[float, float]] = {
    "greedy_adversarial": (0.69, 0.79),
    "greedy_recall": (0.96, 1.0),
    "matcher_accuracy": (0.96, 1.0),
    "words_on_class": (0.0, 0.05),
    "target_kept": (0.91, 1.0),
    "props_kept": (0.0, 0.40),
    "props_kept_half": (0.0, 0.20),
    "agla_adversarial_gain": (0.10, 1.0),
    "agla_gain": (0.04, 1.0),
    "agla_recall_gain": (-0.01, 1.0),
    "map_minus_random_adversarial": (0.06, 1.0),
    "map_minus_random": (0.025, 1.0),
    "half_gain": (0.06, 1.0),
    "megabytes": (0.0, 5.0),
}

Bools = NDArray[np.bool_]


def _answers(model: Any, processor: Any, images: Sequence[Image.Image], asked: Sequence[int]) -> Tensor:
    """Return the first answer token's logits, (n, vocab)."""
    out = []
    for start in range(0, len(images), BATCH):
        texts = [f"USER: <image>\n{question(CLASSES[o])} ASSISTANT:" for o in asked[start : start + BATCH]]
        inputs = processor(images=list(images[start : start + BATCH]), text=texts, return_tensors="pt", padding=True)
        with torch.no_grad():
            out.append(model(**inputs, logits_to_keep=1).logits[:, -1].float())
    return torch.cat(out)


def _guarded(plain: Tensor, local: Tensor) -> Tensor:
    cut = plain.amax(-1, keepdim=True) + math.log(BETA)
    return (plain + ALPHA * local).masked_fill(plain < cut, -torch.inf)


def _black(image: Image.Image, keep: Bools) -> Image.Image:
    return Image.fromarray(np.asarray(image) * keep[..., None])


def _kept(drawn: Scenes, asked: Sequence[tuple[int, int]], keeps: Sequence[Bools]) -> NDArray[np.float64]:
    """Return the share kept of (everything, the object asked about, props), (n, 3); NaN where there is none."""
    rows = []
    for (i, o), keep in zip(asked, keeps, strict=True):
        items, owner = drawn.items[i], drawn.owner[i]
        target = np.isin(owner, np.flatnonzero((items[:, 0] == 0) & (items[:, 1] == o)))
        props = np.isin(owner, np.flatnonzero(items[:, 0] == 1))
        rows.append([keep.mean(), *(keep[part].mean() if part.any() else np.nan for part in (target, props))])
    return np.array(rows)


def _views(matches: Sequence[Match], side: int, seed: int) -> dict[str, list[Bools]]:
    """Return the masks to compare, by name: the map's at its own ratio and at one half, smooth noise at those."""
    noise = heat_map(torch.rand(len(matches), 6, 6, generator=torch.Generator().manual_seed(seed)), side)
    maps = [match.relevance for match in matches]
    scores = [match.score for match in matches]
    return {
        "map": [keep_mask(m, s).numpy() for m, s in zip(maps, scores, strict=True)],
        "half": [keep_mask(m, 1.0).numpy() for m in maps],
        "random": [keep_mask(m, s).numpy() for m, s in zip(noise, scores, strict=True)],
    }


def measure(split: str = "val", n: int = 300, llava: Path = MODEL, blip: Path = MATCHER) -> dict[str, float]:
    """Return every figure of LIMITS, and some beside them, on POPE questions of the first n scenes of a split."""
    torch.set_num_threads(1)
    drawn, questions = pope_set(split, n)
    where = {pair: k for k, pair in enumerate(dict.fromkeys((q.scene, q.asked) for q in questions))}
    asked, back = list(where), np.array([where[q.scene, q.asked] for q in questions])
    images = [Image.fromarray(drawn.image[i]) for i, _ in asked]
    matcher = BlipITM.from_pretrained(blip)
    matches = []
    for start in range(0, len(asked), BATCH):
        texts = [question(CLASSES[o]) for _, o in asked[start : start + BATCH]]
        matches += matcher(images[start : start + BATCH], texts)
    model: Any = LlavaForConditionalGeneration.from_pretrained(llava).float().eval()
    processor = llava_processor()
    yes = processor.tokenizer.convert_tokens_to_ids("yes")
    objects = [o for _, o in asked]
    plain = _answers(model, processor, images, objects)
    views = _views(matches, matcher.side, seed=0)
    kept = {name: _kept(drawn, asked, keeps)[back] for name, keeps in views.items()}
    said = {"greedy": (plain.argmax(-1) == yes).numpy()}
    for name, keeps in views.items():
        cut = [_black(image, keep) for image, keep in zip(images, keeps, strict=True)]
        said[name] = (_guarded(plain, _answers(model, processor, cut, objects)).argmax(-1) == yes).numpy()
    itm = matcher_logits(matcher.model, matcher.tokenizer, drawn, asked)
    said["matcher"] = itm > 0
    shares = [match.share_on_class for match in matches if match.share_on_class is not None]
    size = sum(path.stat().st_size for folder in (llava, blip) for path in folder.glob("*.safetensors"))
    return _figures(questions, {k: v[back] for k, v in said.items()}, kept, itm[back], matcher.platt) | {
        "words_on_class": float(np.mean(shares)),
        "cosine_in_view": float(np.mean([matches[k].score for k, q in zip(back, questions, strict=True) if q.present])),
        "megabytes": size / 1e6,
    }


def _figures(
    questions: Sequence[Question],
    said: dict[str, Bools],
    kept: dict[str, NDArray[np.float64]],
    itm: NDArray[np.float64],
    platt: tuple[float, float],
) -> dict[str, float]:
    truth = np.array([q.present for q in questions])
    mode = np.array([q.mode for q in questions])
    suggested = np.array([q.assumed for q in questions])

    def accuracy(name: str, rows: Bools | None = None) -> float:
        right = said[name] == truth
        return float((right if rows is None else right[rows]).mean())

    def recall(name: str) -> float:
        return float(said[name][truth].mean())

    hard = mode == "adversarial"

    def fit(a: float, b: float) -> float:
        """Return the mean log loss of the calibrated probability, nats."""
        p = np.clip(1 / (1 + np.exp(-(a * itm + b))), 1e-6, 1 - 1e-6)
        return float(-np.where(truth, np.log(p), np.log1p(-p)).mean())

    return {
        "questions": len(questions),
        **{f"greedy_{m}": accuracy("greedy", mode == m) for m in MODES},
        "greedy": accuracy("greedy"),
        "greedy_recall": recall("greedy"),
        "greedy_yes_to_assumed": float(said["greedy"][suggested].mean()),
        "matcher_accuracy": accuracy("matcher"),
        "matcher_adversarial": accuracy("matcher", hard),
        "matcher_log_loss": fit(1.0, 0.0),
        "matcher_log_loss_calibrated": fit(*platt),
        "kept": float(kept["map"][:, 0].mean()),
        "target_kept": float(np.nanmean(kept["map"][truth, 1])),
        "props_kept": float(np.nanmean(kept["map"][suggested, 2])),
        "props_kept_half": float(np.nanmean(kept["half"][suggested, 2])),
        "agla_adversarial": accuracy("map", hard),
        "agla_adversarial_gain": accuracy("map", hard) - accuracy("greedy", hard),
        "agla_gain": accuracy("map") - accuracy("greedy"),
        "agla_recall_gain": recall("map") - recall("greedy"),
        "map_minus_random_adversarial": accuracy("map", hard) - accuracy("random", hard),
        "map_minus_random": accuracy("map") - accuracy("random"),
        "half_gain": accuracy("half") - accuracy("greedy"),
    }


def main(argv: list[str] | None = None) -> int:
    """Measure as the command line says; return 1 if a figure is outside its limits."""
    parser = argparse.ArgumentParser(prog="python -m lvlm_guard.embedded.accept", description=__doc__)
    parser.add_argument("--split", default="val", choices=("val", "test"))
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--llava", type=Path, default=MODEL)
    parser.add_argument("--blip", type=Path, default=MATCHER)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    figures = measure(args.split, args.scenes, args.llava, args.blip)
    failed = 0
    for name, value in figures.items():
        low, high = LIMITS.get(name, (-math.inf, math.inf))
        wrong = not low <= value <= high
        failed += wrong
        limits = f"  [{low:g}, {high:g}] {'FAILED' if wrong else 'ok'}" if name in LIMITS else ""
        print(f"{name:32s} {value:9.3f}{limits}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
