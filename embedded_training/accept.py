"""Measure the trained models against their acceptance figures: `python -m embedded_training.accept`.

They are about the plain model and the matcher alone: the model errs both ways and a threshold undoes none of it, and
the matcher is another witness and no oracle. No method's gain is among them, so that no world is made for a method.
Works on the validation split unless told otherwise; nothing may be tuned on test.
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
from scipy.stats import rankdata
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from embedded_training.build import llava_processor, pixels
from lvlm_guard.embedded import MATCHER, MODEL
from lvlm_guard.embedded.catalog import CLASSES
from lvlm_guard.embedded.questions import MODES, pope_set
from lvlm_guard.embedded.text import CAPTION_PROMPT, question
from lvlm_guard.embedded.world import Scenes, scenes
from lvlm_guard.matching.blip_itm import BlipITM
from lvlm_guard.matching.relevance import keep_mask

BATCH = 64
CAPTION_TOKENS = 64

# name: (lowest, highest) value accepted
LIMITS: dict[str, tuple[float, float]] = {
    "yes_ratio": (0.46, 0.54),
    "matched_accuracy_gain": (-0.02, 0.02),  # so that a tilt wins nothing
    "auroc_adversarial": (0.82, 0.92),
    "errors_on_present": (0.10, 1.0),
    "errors_on_absent": (0.10, 1.0),
    "chair_i": (0.12, 0.30),
    "caption_recall": (0.65, 0.88),
    "caption_repeats": (0.0, 0.08),
    "matcher_matched_accuracy_gain": (-0.05, 0.05),
    "phi_adversarial": (-1.0, 0.30),
    "words_on_class": (0.0, 0.05),
    "megabytes": (0.0, 12.0),
}

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def auroc(scores: Floats, truth: Bools) -> float:
    """Return the chance that a true question scores above a false one, ties one half."""
    yes, ranks = int(truth.sum()), rankdata(scores)
    return float((ranks[truth].sum() - yes * (yes + 1) / 2) / (yes * (len(truth) - yes)))


def matched_accuracy(scores: Floats, truth: Bools) -> float:
    """Return the accuracy of calling as many questions yes as are true, those with the highest scores."""
    said = np.zeros(len(truth), bool)
    said[np.argsort(-scores, kind="stable")[: int(truth.sum())]] = True
    return float((said == truth).mean())


@torch.no_grad()
def matcher_logits(
    model: Any, tokenizer: Any, drawn: Scenes, asked: Sequence[tuple[int, int]], batch: int = 64
) -> NDArray[np.float64]:
    """Return the ITM logit (match minus no match) of each (scene, object)'s question, (n,)."""
    first = tokenizer.convert_tokens_to_ids("[ENC]")
    out = []
    for start in range(0, len(asked), batch):
        rows = asked[start : start + batch]
        encoded = tokenizer([question(CLASSES[o]) for _, o in rows], padding=True, return_tensors="pt")
        ids = encoded.input_ids
        ids[:, 0] = first
        states = model.vision_model(pixels(drawn.image[[i for i, _ in rows]])).last_hidden_state
        fused = model.text_encoder(
            input_ids=ids, attention_mask=encoded.attention_mask, encoder_hidden_states=states
        ).last_hidden_state
        logits = model.itm_head(fused[:, 0]).float()
        out.append((logits[:, 1] - logits[:, 0]).double().numpy())
    return np.concatenate(out)


def _prompt(text: str) -> str:
    return f"USER: <image>\n{text} ASSISTANT:"


def _first_logits(model: Any, processor: Any, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
    """Return the first answer token's logits, (n, vocab)."""
    out = []
    for start in range(0, len(images), BATCH):
        prompts = [_prompt(text) for text in texts[start : start + BATCH]]
        inputs = processor(images=list(images[start : start + BATCH]), text=prompts, return_tensors="pt", padding=True)
        with torch.no_grad():
            out.append(model(**inputs, logits_to_keep=1).logits[:, -1].float())
    return torch.cat(out)


def _questions(model: Any, processor: Any, blip: Path, split: str, n: int) -> dict[str, float]:
    drawn, questions = pope_set(split, n)
    where = {pair: k for k, pair in enumerate(dict.fromkeys((q.scene, q.asked) for q in questions))}
    asked, back = list(where), np.array([where[q.scene, q.asked] for q in questions])
    images = [Image.fromarray(drawn.image[i]) for i, _ in asked]
    texts = [question(CLASSES[o]) for _, o in asked]
    logits = _first_logits(model, processor, images, texts)
    yes, no = processor.tokenizer.convert_tokens_to_ids(["yes", "no"])
    said = (logits.argmax(-1) == yes).numpy()[back]
    scores = (logits[:, yes] - logits[:, no]).double().numpy()[back]
    matcher = BlipITM.from_pretrained(blip)
    itm = matcher_logits(matcher.model, matcher.tokenizer, drawn, asked)[back]
    matches = [m for k in range(0, len(asked), BATCH) for m in matcher(images[k : k + BATCH], texts[k : k + BATCH])]
    kept = [keep_mask(match.relevance, match.score).numpy() for match in matches]
    hidden = [
        mask[np.isin(drawn.owner[i], np.flatnonzero((drawn.items[i, :, 0] == 0) & (drawn.items[i, :, 1] == o)))].mean()
        for (i, o), mask in zip(asked, kept, strict=True)
        if o in drawn.visible(i)[0]
    ]
    truth, mode = np.array([q.present for q in questions]), np.array([q.mode for q in questions])
    right, hard = said == truth, mode == "adversarial"
    matched, judged = matched_accuracy(scores, truth), matched_accuracy(itm, truth)
    return {
        "questions": len(questions),
        "accuracy": float(right.mean()),
        **{f"accuracy_{m}": float(right[mode == m].mean()) for m in MODES},
        "yes_ratio": float(said.mean()),
        **{f"yes_ratio_{m}": float(said[mode == m].mean()) for m in MODES},
        "matched_accuracy_gain": matched - float(right.mean()),
        **{f"auroc_{m}": auroc(scores[mode == m], truth[mode == m]) for m in MODES},
        "errors_on_present": float((~right)[truth].mean()),
        "errors_on_absent": float((~right)[~truth].mean()),
        "matcher_matched_accuracy": judged,
        "matcher_matched_accuracy_gain": judged - matched,
        **{f"matcher_auroc_{m}": auroc(itm[mode == m], truth[mode == m]) for m in MODES},
        "phi_adversarial": float(np.corrcoef(((itm > 0) != truth)[hard], (~right)[hard])[0, 1]),
        "words_on_class": float(np.mean([m.share_on_class for m in matches if m.share_on_class is not None])),
        "kept": float(np.mean([mask.mean() for mask in kept])),
        "target_kept": float(np.mean(hidden)),
    }


def _captions(model: Any, processor: Any, split: str, n: int) -> dict[str, float]:
    drawn, named, invented, repeated, recalled, there = scenes(f"{split}_cap", n), 0, 0, 0, 0, 0
    for start in range(0, n, BATCH):
        rows = range(start, min(n, start + BATCH))
        images = [Image.fromarray(drawn.image[i]) for i in rows]
        inputs = processor(
            images=images, text=[_prompt(CAPTION_PROMPT)] * len(images), return_tensors="pt", padding=True
        )
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=CAPTION_TOKENS, do_sample=False)
        texts = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(rows, texts, strict=True):
            mentions = [word for word in text.split() if word in CLASSES]
            objects = {CLASSES[o] for o in drawn.visible(i)[0]}
            named += len(mentions)
            invented += sum(word not in objects for word in mentions)
            repeated += len(mentions) - len(set(mentions))
            recalled += len(objects & set(mentions))
            there += len(objects)
    return {
        "captions": n,
        "chair_i": invented / max(1, named),
        "caption_recall": recalled / max(1, there),
        "caption_repeats": repeated / max(1, named),
    }


def measure(
    split: str = "val", pictures: int = 300, captions: int = 300, llava: Path = MODEL, blip: Path = MATCHER
) -> dict[str, float]:
    """Return every figure of LIMITS, and some beside them.

    Args:
        split: "val", "test", or one of them on photographs ("val_real").
        pictures: scenes that POPE's questions are asked about.
        captions: scenes that are captioned.
    """
    torch.set_num_threads(1)
    model: Any = LlavaForConditionalGeneration.from_pretrained(llava).float().eval()
    processor = llava_processor()
    size = sum(path.stat().st_size for folder in (llava, blip) for path in folder.glob("*.safetensors"))
    return {
        **_questions(model, processor, blip, split, pictures),
        **_captions(model, processor, split, captions),
        "megabytes": size / 1e6,
    }


def main(argv: list[str] | None = None) -> int:
    """Measure as the command line says; return 1 if a figure is outside its limits."""
    parser = argparse.ArgumentParser(prog="python -m embedded_training.accept", description=__doc__)
    parser.add_argument("--split", default="val", choices=("val", "test", "val_real", "test_real"))
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--llava", type=Path, default=MODEL)
    parser.add_argument("--blip", type=Path, default=MATCHER)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    figures = measure(args.split, args.scenes, args.scenes, args.llava, args.blip)
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
