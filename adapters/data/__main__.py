"""Convert published layouts to facts, or look at some: `python -m lvlm_guard.adapters.data coco OUT.jsonl ...`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lvlm_guard.adapters.data import convert, open_facts
from lvlm_guard.adapters.data.facts import SPLITS
from lvlm_guard.errors import GuardError

LAYOUTS = {
    "coco": "COCO-style instances, counted and exhaustive over their categories, and captions",
    "released": "the ranking-aware adapter's tab-separated table",
    "values": "a table of pictures and values: age, quality, beauty",
    "dcar": "DCAR's captions with four negatives each",
    "check": "facts as they are: counts, and what is wrong with them",
}


def main(argv: list[str] | None = None) -> int:
    """Convert as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lvlm_guard.adapters.data", description=__doc__)
    layouts = parser.add_subparsers(dest="layout", required=True)
    for name, text in LAYOUTS.items():
        layout = layouts.add_parser(name, help=text, description=text)
        if name == "coco":
            layout.add_argument("--instances", type=Path, help="instances_*.json")
            layout.add_argument("--captions", type=Path, help="captions_*.json")
            layout.add_argument(
                "--crowd", choices=("present", "ignore"), default="present", help="what a crowd box says"
            )
        else:
            layout.add_argument("source")
        if name != "check":
            layout.add_argument("target", type=Path, help="a .jsonl file; paths in it start at the pictures' folder")
        if name not in ("values", "check"):
            layout.add_argument("--split", choices=SPLITS, help="of all pictures")
    layouts.choices["check"].add_argument("--images", type=Path, help="where paths of a .jsonl file start")
    layouts.choices["dcar"].add_argument("--meta", help="what all pictures are of")
    table = layouts.choices["values"]
    table.add_argument("--object", required=True, help="what the values are of")
    table.add_argument("--instruction", required=True, help="what the ranker is asked: 'Rank the age of the person.'")
    table.add_argument("--image", default="image", help="column of the pictures' names")
    table.add_argument("--value", default="value", help="column of the values")
    table.add_argument("--train-ids", type=Path, help="file of ids to train on; the rest is for the test")
    table.add_argument("--suffix", default="", help="put behind the names: .jpg")
    given = vars(parser.parse_args(argv))
    layout, target, source = given.pop("layout"), given.pop("target", None), given.pop("source", None)
    try:
        if layout == "check":
            print(open_facts(source, **given).summary())
            return 0
        made = getattr(convert, layout)(*([] if source is None else [source]), **given, root=target.parent)
        made.write(target)
    except GuardError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{made.summary()}\nwritten to {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
