"""Measure the memory of the pair head: `python -m embedded_training.memory`.

Each figure is the peak of a fresh process above what it held with the pictures' tokens in memory. "attention" is what
the relation tokens find in each picture, forward and backward; "table" is the whole head without gradients, whose
tensors over pairs are cut to a bounded size; "training" is the whole head, forward and backward. Beside them stands,
computed, what the published form holds for the same pictures: both pictures' keys once a pair, and the attention to
them (float32). A float32 table of logits alone takes 4 K^2 bytes, in either form.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch import Tensor

from lvlm_guard.adapters.ranker.network import PairHead
from lvlm_guard.adapters.ranker.settings import RankerSettings
from lvlm_guard.bench.memory import peak_meter
from lvlm_guard.cli.console import print_json


def attention(head: PairHead, tokens: Tensor) -> None:
    """Find each picture's evidence and content, and their gradients."""
    evidence, content = head.attended(tokens.requires_grad_())
    (evidence.sum() + content.sum()).backward()


def table(head: PairHead, tokens: Tensor) -> None:
    """Compare all pictures, without gradients."""
    with torch.no_grad():
        head(tokens)


def training(head: PairHead, tokens: Tensor) -> None:
    """Compare all pictures, and take the gradients."""
    head(tokens.requires_grad_()).square().sum().backward()


WORK: dict[str, Callable[[PairHead, Tensor], None]] = {"attention": attention, "table": table, "training": training}
"""What is measured."""


def alone(work: str, pictures: int, tokens: int, width: int, device: str = "cpu") -> float:
    """Return `peak` of a fresh process, which has no freed memory to use again."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(peak, work, pictures, tokens, width, device).result()


def peak(work: str, pictures: int, tokens: int, width: int, device: str) -> float:
    """Return the peak of a piece of `WORK` above the pictures' tokens, in MiB."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    head = PairHead(RankerSettings(width=width)).to(device)
    WORK[work](head, torch.randn(2, tokens, width, device=device))  # libraries load what they need
    given = torch.randn(pictures, tokens, width, device=device)
    read = peak_meter(torch.device(device))
    before = read()
    WORK[work](head, given)
    return read() - before


def published(pictures: int, tokens: int, width: int) -> tuple[int, int]:
    """Return bytes of (keys, attention) over all ordered pairs, as the release holds them at once."""
    settings = RankerSettings(width=width)
    each = pictures**2 * 2 * tokens * 4
    return each * width, each * settings.heads * settings.relations


MIB = 2**20


def main(argv: list[str] | None = None) -> int:
    """Measure as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m embedded_training.memory", description=__doc__)
    parser.add_argument("--pictures", type=int, nargs="+", default=[64, 256, 1024], help="K")
    parser.add_argument("--tokens", type=int, default=100, help="P of a picture; the release: 100")
    parser.add_argument("--width", type=int, default=768, help="of the ranker; the release: 768")
    parser.add_argument("--work", choices=list(WORK), nargs="+", default=["attention", "table"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")
    args = parser.parse_args(argv)
    columns = ["tokens", *args.work, "published keys", "published attention"]
    if not args.json:
        print(
            f"P = {args.tokens}, width {args.width}, MiB above the tokens, on {args.device}, torch {torch.__version__}"
        )
        print(" | ".join(["K", *columns]))
        print(" | ".join(["---"] * (1 + len(columns))), flush=True)
    rows = []
    for pictures in args.pictures:
        given = (pictures, args.tokens, args.width)
        found = [alone(work, *given, args.device) for work in args.work]
        held = [pictures * args.tokens * args.width * 4 / MIB, *found, *(size / MIB for size in published(*given))]
        rows += [
            {"pictures": pictures, "metric": f"{name} (MiB)", "value": size}
            for name, size in zip(columns, held, strict=True)
        ]
        if not args.json:
            print(" | ".join([str(pictures), *(f"{size:,.0f}" for size in held)]), flush=True)
    if args.json:
        print_json("python -m embedded_training.memory", rows, args.device, settings=vars(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
