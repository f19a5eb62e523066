"""Measure where the maps of the embedded matchers point: `python -m lvlm_guard.adapters.matchers`.

On pasted drawings and among other objects, see `pointing`; the ranker is asked for the objects that it counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import torch

from lvlm_guard.adapters.loading import load_adapter
from lvlm_guard.adapters.matchers.clip import LAYERS, ClipMatcher
from lvlm_guard.adapters.matchers.pointing import CANVASES, among, pasted, pointed, shares
from lvlm_guard.adapters.world.pictures import COUNTED
from lvlm_guard.cli.console import print_json
from lvlm_guard.embedded.catalog import CLASSES
from lvlm_guard.matching import Matcher, load_matcher

MATCHERS = {"clip": "embedded-clip", "dual-prompt": "embedded-dual-prompt", "ranker": "embedded-ranker"} | {
    "blip-itm": "embedded"
}


def main(argv: list[str] | None = None) -> int:
    """Measure as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lvlm_guard.adapters.matchers", description=__doc__)
    parser.add_argument("--matcher", choices=list(MATCHERS), nargs="+", default=list(MATCHERS))
    parser.add_argument("--layers", type=int, nargs="+", default=[LAYERS], help="of clip and dual-prompt, the last")
    parser.add_argument("--layouts", type=int, default=50, help="of each canvas")
    parser.add_argument("--among", type=int, default=200, help="objects among others")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="of the scenes with others")
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    if not args.json:
        print("matcher | layouts | n | highest in square | on drawing | on another | mean higher | AUROC of pixels")
        print("--- | --- | --- | --- | --- | --- | --- | ---")
    rows = []
    for name in args.matcher:
        names, counted = (COUNTED, True) if name == "ranker" else (CLASSES, False)
        sets = {canvas: [pasted(canvas, k, names) for k in range(args.layouts)] for canvas in CANVASES}
        sets["among others"] = list(among(args.split, args.among, "count" if counted else "captions", first=counted))
        for told, matcher in _matchers(name, args.layers):
            for what, layouts in sets.items():
                each = shares(pointed(matcher, layouts))
                head = {"matcher": told, "task": what, "n": len(layouts)}
                rows += [head | {"metric": metric} | found._asdict() for metric, found in each.items()]
                if not args.json:
                    cells = [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in each.values()]
                    print(" | ".join([told, what, str(len(layouts)), *cells]), flush=True)
    if args.json:
        print_json("python -m lvlm_guard.adapters.matchers", rows, settings=vars(args))
    return 0


def _matchers(name: str, layers: list[int]) -> Iterator[tuple[str, Matcher]]:
    """Yield a matcher as it is told and loaded, for each number of layers where it has them."""
    if name not in ("clip", "dual-prompt"):
        yield name, load_matcher(MATCHERS[name])
        return
    for number in layers:
        yield f"{name}, {number} layers", ClipMatcher(load_adapter(MATCHERS[name]), name, number)


if __name__ == "__main__":
    sys.exit(main())
