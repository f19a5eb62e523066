"""Write the package's model folders from a training run: `python -m embedded_training.export build/embedded`.

Weights are stored in half precision; the configs say float32, so plain `from_pretrained` computes in float32. The
LVLM's tower keys are `vision_tower.vision_model.*`, which vLLM and every release of transformers read. The matcher's
probability is calibrated on the validation split (`platt`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import BlipForImageTextRetrieval, GenerationConfig

from embedded_training.accept import matcher_logits
from embedded_training.build import blip_processor, llava_processor
from lvlm_guard.embedded import MATCHER, MODEL
from lvlm_guard.embedded.questions import pope_set
from lvlm_guard.matching.platt import platt

GRADCAM_LAYER = 0  # the last of the two layers has zero gradient at the words
WEIGHTS = "model.safetensors"


def _halved(source: Path, target: Path) -> None:
    """Copy weights and config of a trained folder in half precision."""
    weights = {name: value.half().contiguous() for name, value in load_file(source / WEIGHTS).items()}
    old, new = "vision_tower.", "vision_tower.vision_model."
    weights = {
        name if name.startswith(new) or not name.startswith(old) else new + name.removeprefix(old): value
        for name, value in weights.items()
    }
    target.mkdir(parents=True, exist_ok=True)
    save_file(weights, target / WEIGHTS, metadata={"format": "pt"})
    (target / WEIGHTS).chmod(0o644)


def _write_config(source: Path, target: Path, extra: dict[str, Any]) -> None:
    config = json.loads((source / "config.json").read_text())
    config["lvlm_guard"] = extra
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def export_llava(source: Path, target: Path = MODEL) -> None:
    """Write the LVLM's folder."""
    _halved(source, target)
    _write_config(source, target, {"matcher": "../blip"})
    config = json.loads((target / "config.json").read_text())["text_config"]
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    GenerationConfig(**{name: config[name] for name in names}).save_pretrained(target)
    llava_processor().save_pretrained(target)


def export_blip(source: Path, target: Path = MATCHER) -> None:
    """Write the matcher's folder, its probability calibrated on POPE questions of the validation split."""
    _halved(source, target)
    processor = blip_processor()
    processor.save_pretrained(target)
    guard: dict[str, Any] = {"gradcam_layer": GRADCAM_LAYER}
    _write_config(source, target, guard)
    torch.set_num_threads(1)
    model = BlipForImageTextRetrieval.from_pretrained(target).eval()
    scenes, questions = pope_set("val")
    where = {pair: k for k, pair in enumerate(dict.fromkeys((q.scene, q.asked) for q in questions))}
    logits = matcher_logits(model, processor.tokenizer, scenes, list(where))
    # Every question as often as POPE asks it, so that one in two is about an object in view.
    logits = logits[[where[q.scene, q.asked] for q in questions]]
    labels = np.array([q.present for q in questions])
    guard["platt"] = [round(value, 4) for value in platt(logits, labels)]
    print(f"calibrated on {len(labels)} questions: a, b = {guard['platt']}", flush=True)
    _write_config(source, target, guard)


def main(argv: list[str] | None = None) -> None:
    """Export as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m embedded_training.export", description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", default=Path("build/embedded"), help="the training's --out")
    parser.add_argument("--only", choices=("llava", "blip"))
    args = parser.parse_args(argv)
    if args.only != "blip":
        export_llava(args.run / "llava")
    if args.only != "llava":
        export_blip(args.run / "blip")


if __name__ == "__main__":
    main()
