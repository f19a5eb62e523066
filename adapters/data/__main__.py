"""Convert published layouts to facts, or look at some: `python -m lvlm_guard.adapters.data coco OUT.jsonl ...`.

COCO: instance annotations count each of the listed categories, and a picture without a box of one has none; captions
come from the file of captions. A crowd box marks objects that nobody counted, so there are some; the published
protocol leaves it out (a picture with nothing but a crowd of people would show 0 people), which `--crowd ignore` does.

DCAR (arXiv:2508.04028): a JSON object keyed by name; each entry has `file_name`, `file_path`, `positive` and `negative`
(four of them), some `class_name`. That data carries no licence: it is read only from where a user has it.

Tables: the ranking-aware adapter's (arXiv:2412.06760), tab-separated, with the columns filepath, cname, value and
sample_weights_by_class; and plain ones of pictures and values, such as age, quality or beauty.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from lvlm_guard.adapters.data import FactsData, open_facts
from lvlm_guard.adapters.data.facts import PRESENT, SPLITS, facts_of
from lvlm_guard.adapters.data.pictures import Files
from lvlm_guard.adapters.errors import DataError
from lvlm_guard.errors import GuardError, did_you_mean

NEEDED: Mapping[str, Mapping[str, Sequence[str]]] = {
    "instances": {
        "images": ("id", "file_name"),
        "categories": ("id", "name"),
        "annotations": ("image_id", "category_id"),
    },
    "captions": {"images": ("id", "file_name"), "annotations": ("image_id", "caption")},
}
"""Of COCO's files: the lists, and the keys of their entries."""


def coco(
    instances: str | Path | None,
    captions: str | Path | None = None,
    *,
    split: str | None = None,
    crowd: Literal["present", "ignore"] = "present",
    root: Path = Path(),
) -> FactsData:
    """Return the facts of COCO-style annotations; pictures are named by `file_name`.

    Here as in the other layouts `split` is the one of all pictures and `root` where their paths start; `DataError` is
    raised where a file is none of the layout.
    """
    told: dict[str, dict[str, Any]] = {}
    exhaustive: list[str] = []
    given = {part: Path(path) for part, path in (("instances", instances), ("captions", captions)) if path is not None}
    if not given:
        raise DataError("Give COCO's instances, its captions, or both.")
    for part, path in given.items():
        found = _annotations(path, part)
        files = {image["id"]: str(image["file_name"]) for image in found["images"]}
        names = {entry["id"]: str(entry["name"]) for entry in found.get("categories", ()) if part == "instances"}
        exhaustive += names.values()
        for file in files.values():
            told.setdefault(file, {"captions": []})
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        crowds: dict[str, set[str]] = defaultdict(set)
        for entry in found["annotations"]:
            file = files[entry["image_id"]]
            if part == "captions":
                told[file]["captions"].append(str(entry["caption"]))
                continue
            name = names[entry["category_id"]]
            if not entry.get("iscrowd"):
                counts[file][name] += 1
            elif crowd == "present":
                crowds[file].add(name)
        for file in {**counts, **crowds}:
            told[file]["objects"] = {**counts[file], **dict.fromkeys(sorted(crowds[file]), PRESENT)}
    facts = [facts_of({"image": file, "split": split, **each}, f"picture {file}") for file, each in told.items()]
    return FactsData(facts, Files(root), str(instances or captions), exhaustive)


def _annotations(path: Path, what: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = _json(path)
    for part, keys in NEEDED[what].items():
        listed = found.get(part) if isinstance(found, dict) else None
        if not isinstance(listed, list) or (not listed and part != "annotations"):
            raise DataError(f"{path} has no list {part!r}: it is no COCO-style file of {what}.")
        for key in keys:
            if any(not isinstance(entry, dict) or key not in entry for entry in listed):
                raise DataError(f"{path}: an entry of {part!r} has no {key!r}; it is no COCO-style file of {what}.")
    told = ("an annotation is of the picture", "a box is of the category")
    for part, key, said in zip(("images", "categories"), ("image_id", "category_id"), told, strict=True):
        known = {entry["id"] for entry in found[part]} if part in NEEDED[what] else set()
        if strange := [entry[key] for entry in found["annotations"] if known and entry[key] not in known]:
            raise DataError(f"{path}: {said} {strange[0]!r}, which is not listed.")
    return found


def dcar(path: str | Path, *, meta: str | None = None, split: str | None = None, root: Path = Path()) -> FactsData:
    """Return the facts of DCAR's layout; `meta` is what all pictures are of: "cat"."""
    found = _json(Path(path))
    if not isinstance(found, Mapping) or not found:
        raise DataError(f"{path} is none of the published layout: an object keyed by name is expected.")
    facts = []
    for key, entry in found.items():
        where = f"{path}, entry {key!r}"
        if not isinstance(entry, Mapping) or "positive" not in entry or not {"file_name", "file_path"} & entry.keys():
            raise DataError(f"{where}: expected are file_name, file_path, positive, negative; got {str(entry)[:80]}.")
        negative = entry.get("negative") or []
        negatives = [negative] if isinstance(negative, str) else negative
        caption = {"text": entry["positive"], "category": entry.get("class_name"), "meta": meta, "negatives": negatives}
        place = PurePosixPath(str(entry.get("file_path") or "").replace("\\", "/"))
        name = str(entry.get("file_name") or "")
        # in some of the files `file_path` is the picture's folder, in others all of its path
        image = place if not name or place.name == name or place.suffix else place / name
        facts.append(facts_of({"image": str(image), "captions": [caption], "split": split}, where))
    return FactsData(facts, Files(root), str(path))


def released(path: str | Path, *, split: str | None = None, root: Path = Path()) -> FactsData:
    """Return the facts of a table in the released layout."""
    facts = []
    for where, row in _rows(Path(path), ("filepath", "cname", "value")):
        weight = row.get("sample_weights_by_class")
        weights = {row["cname"]: weight} if weight else {}
        found = {"image": row["filepath"], "objects": {row["cname"]: row["value"]}, "weights": weights, "split": split}
        facts.append(facts_of(found, where))
    return FactsData(facts, Files(root), str(path))


def values(
    path: str | Path,
    *,
    object: str,
    instruction: str,
    image: str = "image",
    value: str = "value",
    train_ids: str | Path | None = None,
    suffix: str = "",
    root: Path = Path(),
) -> FactsData:
    """Return the facts of a plain table with the columns `image` and `value`; the other arguments are the command's."""
    fold = None
    if train_ids is not None:
        if not Path(train_ids).is_file():
            raise DataError(f"There is no file of ids {str(train_ids)!r}.")
        fold = {line.strip() for line in Path(train_ids).read_text("utf-8").splitlines() if line.strip()}
    facts = []
    for where, row in _rows(Path(path), (image, value)):
        name = (row[image] or "").strip()
        split = None if fold is None else "train" if fold & {name, Path(name).stem} else "test"
        facts.append(facts_of({"image": name + suffix, "objects": {object: row[value]}, "split": split}, where))
    if fold is not None and not any(each.split == "train" for each in facts):
        raise DataError(f"{path}: none of its pictures is among the {len(fold)} ids of {train_ids}.")
    return FactsData(facts, Files(root), str(path), template=instruction)


def _rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield ("file, line 3", its cells by column) of a table with commas or tabs."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            head = lines.readline()
            lines.seek(0)
            table = csv.DictReader(lines, delimiter="\t" if "\t" in head else ",", strict=True)
            columns = list(table.fieldnames or ())
            for name in needed:
                if name not in columns:
                    raise DataError(
                        f"{path} has no column {name!r}. {did_you_mean(name, columns)}Columns: {', '.join(columns)}. "
                        "The first line must name them."
                    )
            for number, found in enumerate(table, 2):
                where = f"{path}, line {number}"
                if None in found or None in found.values():
                    raise DataError(f"{where}: {len(columns)} columns are expected, as in the first line.")
                yield where, found
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read as a table, in UTF-8: {error}.") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"There is no file {str(path)!r}.") from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}. It may be cut short.") from error


LAYOUTS: Mapping[str, tuple[Callable[..., FactsData], str]] = {
    "coco": (coco, "COCO-style instances, counted and exhaustive over their categories, and captions"),
    "released": (released, "the ranking-aware adapter's tab-separated table"),
    "values": (values, "a table of pictures and values: age, quality, beauty"),
    "dcar": (dcar, "DCAR's captions with four negatives each"),
    "check": (open_facts, "facts as they are: counts, and what is wrong with them"),
}


def main(argv: list[str] | None = None) -> int:
    """Convert as the command line says; return the exit status."""
    summary = str(__doc__).partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m lvlm_guard.adapters.data", description=summary)
    layouts = parser.add_subparsers(dest="layout", required=True)
    for name, (_, text) in LAYOUTS.items():
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
    read, _ = LAYOUTS[given.pop("layout")]
    source = [given.pop("source")] if "source" in given else []
    target: Path | None = given.pop("target", None)
    try:
        made = read(*source, **given, **({} if target is None else {"root": target.parent}))
        print(made.summary() if target is None else f"{made.summary()}\nwritten to {made.write(target)}")
    except GuardError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
