"""Train the tiny CLIP from nothing: `python -m embedded_training.clip`.

The loss is CLIP's (Radford et al., arXiv:2103.00020) over the batch, with two changes for so small a world: a caption
that happens to be true of another picture is no negative for it, and each image token also learns to name what covers
it (as the towers of `lvlm_guard.embedded`), without which contrast alone would need far more pictures.

One command, one seed. Progress is saved every 100 steps under --out; the same command goes on after a kill, and
--minutes ends a run at such a point. At the end the half-precision folder is written to --folder.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPModel
from transformers.utils import logging

from embedded_training.build import pixels
from embedded_training.clip_parts import WIDTH, build, processor
from embedded_training.clip_seen import Pool, joined, plain, tinted
from embedded_training.loop import EVERY, Trainee, optimizer
from lvlm_guard.adapters.loading import TINY
from lvlm_guard.embedded.catalog import N_OBJECTS

STEPS = 2200
BATCH, RATE = 48, 1e-3
TINTED, PLAIN = 9_000, 7_000  # pictures of each world
GROUND_WEIGHT = 0.3  # most image tokens show the ground
HOTTEST = 100.0  # CLIP's bound of the logit scale


class OutOfTime(Exception):
    """The run's minutes are over; all is saved."""


def contrast(image: Tensor, caption: Tensor, scale: Tensor, true: Tensor) -> Tensor:
    """Return the mean of both directions' cross entropy.

    Args:
        image, caption: (n, joint), of length 1; row i of both belong together.
        scale: what cosines are multiplied with.
        true: (captions, pictures) bool; pairs off the diagonal that are true are left out.
    """
    logits = scale * caption @ image.t()
    others = true & ~torch.eye(len(true), dtype=torch.bool)
    logits = logits.masked_fill(others, float("-inf"))
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2


def train(seed: int, short: float, batch: int, pool: Pool, folder: Path, minutes: float | None = None) -> CLIPModel:
    """Train from nothing or from where `folder` was left; return the model.

    Args:
        short: scale of the steps.
        minutes: how long at most; None for to the end.

    Raises:
        OutOfTime: `minutes` are over before the last step; call again to go on.
    """
    steps = max(2, int(STEPS * short))
    end = None if minutes is None else time.monotonic() + 60 * minutes
    trainee = Trainee("clip", ("main",), folder, np.random.default_rng(seed))
    rng, model, words = trainee.rng, build(seed), processor().tokenizer
    head = nn.Linear(WIDTH, 1 + N_OBJECTS)
    model.train()
    model.set_attn_implementation("eager")  # on a CPU, backward is 1.6 times as fast as sdpa's at this size
    opt = optimizer([*model.parameters(), *head.parameters()], RATE)
    weight = torch.ones(1 + N_OBJECTS)
    weight[0] = GROUND_WEIGHT

    def step(i: int) -> tuple[Tensor, dict[str, Tensor]]:
        if end is not None and i % EVERY == 0 and time.monotonic() > end:
            raise OutOfTime(f"{i} of {steps} steps are saved in {folder}; the same command goes on.")
        rows = [int(k) for k in rng.choice(len(pool.image), batch, replace=False)]
        captions, claims = zip(*(pool.caption(rng, k) for k in rows), strict=True)
        encoded = words(list(captions), padding=True, return_tensors="pt")
        labels = torch.as_tensor(pool.patches[rows])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            seen = model.vision_model(pixels(pool.image[rows]))
            read = model.text_model(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask)
            image = F.normalize(model.visual_projection(seen.pooler_output).float(), dim=-1)
            caption = F.normalize(model.text_projection(read.pooler_output).float(), dim=-1)
            patches = head(seen.last_hidden_state[:, 1:]).float()
        scale = model.logit_scale.exp().clamp(max=HOTTEST)
        true = torch.as_tensor(pool.true_of(rows, claims))
        pairs = contrast(image, caption, scale, true)
        named = F.cross_entropy(patches.flatten(0, 1), labels.flatten(), weight=weight)
        right = (patches.argmax(-1) == labels)[labels > 0].float().mean()
        first = ((caption @ image.t()).masked_fill(true & ~torch.eye(batch, dtype=torch.bool), -2).argmax(1)) == (
            torch.arange(batch)
        )
        return pairs + named, {
            "pairs": pairs,
            "first": first.float().mean(),
            "patches": named,
            "fg": right,
            "scale": scale,
        }

    trainee.train("main", {"model": model, "head": head}, opt, step, steps=steps, rate=RATE)
    model.eval()
    return model


def write(model: CLIPModel, folder: Path) -> None:
    """Write the folder that `from_pretrained` loads; weights in half precision, computed with in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    processor().save_pretrained(folder)
    model.config.architectures = ["CLIPModel"]
    model.config.dtype = "float32"
    model.config.save_pretrained(folder)
    weights = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def main(argv: list[str] | None = None) -> int:
    """Train as the command line says; return the exit status, 3 where --minutes were too few."""
    parser = argparse.ArgumentParser(prog="python -m embedded_training.clip", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/clip"), help="where progress is saved")
    parser.add_argument("--folder", type=Path, default=TINY, help="where the finished model goes")
    parser.add_argument("--minutes", type=float, help="end after so long, at a saved step")
    parser.add_argument("--short", type=float, default=1.0, help="scale of steps and pictures, for smoke runs")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    start = time.time()
    pool = joined([tinted(max(BATCH, int(TINTED * args.short))), plain(max(BATCH, int(PLAIN * args.short)))])
    print(f"clip pictures {len(pool.image)} {time.time() - start:.0f}s", flush=True)
    try:
        model = train(args.seed, args.short, BATCH, pool, args.out, args.minutes)
    except OutOfTime as stop:
        print(stop, flush=True)
        return 3
    write(model, args.folder)
    print(f"clip written to {args.folder} after {time.time() - start:.0f}s in this run", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
