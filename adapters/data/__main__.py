"""Convert published layouts to files of rows: `python -m lvlm_guard.adapters.data coco instances.json ranks.jsonl`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lvlm_guard.adapters.data import coco, dcar, tables
from lvlm_guard.adapters.data.captions import CaptionData
from lvlm_guard.adapters.data.jsonl import write_captions, write_ranks
from lvlm_guard.adapters.data.pictures import Files
from lvlm_guard.adapters.data.ranks import COUNTS, RankData
from lvlm_guard.adapters.data.rows import SPLITS
from lvlm_guard.errors import GuardError

LAYOUTS = {
    "coco": "COCO-style instances, counted; exhaustive over their categories",
    "released": "the ranking-aware adapter's tab-separated table",
    "values": "a table of pictures and values: age, quality, beauty",
    "dcar": "DCAR's captions with four negatives each",
}


def main(argv: list[str] | None = None) -> int:
    """Convert as the command line says; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lvlm_guard.adapters.data", description=__doc__)
    layouts = parser.add_subparsers(dest="layout", required=True)
    for name, text in LAYOUTS.items():
        layout = layouts.add_parser(name, help=text, description=text)
        layout.add_argument("source", type=Path)
        layout.add_argument("target", type=Path, help="a .jsonl file; paths in it start at the pictures' folder")
        if name != "values":
            layout.add_argument("--split", choices=SPLITS, help="of all rows")
    layouts.choices["coco"].add_argument(
        "--crowd", choices=("unknown", "ignore"), default="unknown", help="what a crowd box makes of a count"
    )
    layouts.choices["dcar"].add_argument("--meta", help="what all pictures are of")
    values = layouts.choices["values"]
    values.add_argument("--object", required=True, help="what the values are of")
    values.add_argument("--instruction", required=True, help="what the ranker is asked: 'Rank the age of the person.'")
    values.add_argument("--image", default="image", help="column of the pictures' names")
    values.add_argument("--value", default="value", help="column of the values")
    values.add_argument("--train-ids", type=Path, help="file of ids to train on; the rest is for the test")
    values.add_argument("--suffix", default="", help="put behind the names: .jpg")
    args = parser.parse_args(argv)
    try:
        print(_convert(args))
    except GuardError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _convert(args: argparse.Namespace) -> str:
    store, name = Files(args.target.parent), str(args.source)
    if args.layout == "dcar":
        captions = CaptionData(dcar.convert(args.source, meta=args.meta, split=args.split), store, name)
        write_captions(args.target, captions.rows)
        return f"{captions.summary()}\nwritten to {args.target}"
    exhaustive: list[str] = []
    template = COUNTS
    notes: dict[str, int] = {}
    if args.layout == "coco":
        rows, exhaustive, notes = coco.convert(args.source, split=args.split, crowd=args.crowd)
    elif args.layout == "released":
        rows = tables.convert_released(args.source, split=args.split)
    else:
        template = args.instruction
        rows = tables.convert_values(
            args.source,
            object=args.object,
            image=args.image,
            value=args.value,
            train_ids=args.train_ids,
            suffix=args.suffix,
        )
    data = RankData(rows, store, name, exhaustive, template)
    write_ranks(args.target, data.rows, exhaustive=exhaustive, template=template)
    seen = "".join(f"\n  {count:,} {what}" for what, count in notes.items())
    return f"{data.summary()}{seen}\nwritten to {args.target}"


if __name__ == "__main__":
    sys.exit(main())
