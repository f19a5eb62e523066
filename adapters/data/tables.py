"""Tables of values: the ranking-aware adapter's released layout, and plain `image,value` tables.

Released (arXiv:2412.06760): tab-separated, with the columns filepath, title, cname, value, sample_weights_by_class.
Plain: age (Adience, HCI), quality (KonIQ-10k) or beauty (AVA) of whole pictures, comma- or tab-separated; folds are
given as a file of ids to train on, everything else is then for the test.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lvlm_guard.adapters.data.errors import DataError
from lvlm_guard.adapters.data.rows import RankRow, rank_row
from lvlm_guard.errors import did_you_mean

RELEASED = {"filepath": "image", "cname": "object", "value": "value", "sample_weights_by_class": "weight"}


def convert_released(path: str | Path, *, split: str | None = None) -> list[RankRow]:
    """Return the rows of a table in the released layout; `title`, its text for people, is not used.

    Raises:
        DataError: a column is missing, or a value is no number.
    """
    needed = ("filepath", "cname", "value")
    rows = []
    for where, found in _rows(Path(path), needed):
        given = {ours: found[theirs] for theirs, ours in RELEASED.items() if found.get(theirs)}
        rows.append(rank_row({**given, "split": split}, where))
    return rows


def convert_values(
    path: str | Path,
    *,
    object: str,
    image: str = "image",
    value: str = "value",
    train_ids: str | Path | None = None,
    suffix: str = "",
) -> list[RankRow]:
    """Return the rows of a plain table.

    Args:
        object: what the values are of: "age".
        image: the column of the pictures' names.
        value: the column of their values.
        train_ids: a file of picture names, with or without ending, one a line; those are of the split "train", all
            others "test". None: no row says a split.
        suffix: put behind the names, where the table leaves the ending away: ".jpg".

    Raises:
        DataError: a column is missing, a value is no number, or no picture has an id of the fold.
    """
    fold = _ids(Path(train_ids)) if train_ids is not None else None
    rows: list[RankRow] = []
    for where, found in _rows(Path(path), (image, value)):
        name = (found[image] or "").strip()
        split = None
        if fold is not None:
            split = "train" if fold & {name, Path(name).stem} else "test"
        rows.append(rank_row({"image": name + suffix, "object": object, "value": found[value], "split": split}, where))
    if fold is not None and not any(row.split == "train" for row in rows):
        raise DataError(f"{path}: none of its pictures is among the {len(fold)} ids of {train_ids}.")
    return rows


def _ids(path: Path) -> set[str]:
    if not path.is_file():
        raise DataError(f"There is no file of ids {str(path)!r}.")
    return {line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}


def _rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[str, Mapping[str, str | None]]]:
    if not path.is_file():
        raise DataError(f"There is no table {str(path)!r}.")
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
        try:
            for number, found in enumerate(table, 2):
                if None in found or None in found.values():
                    raise DataError(
                        f"{path}, line {number}: {len(columns)} columns are expected, as in the first line."
                    )
                yield f"{path}, line {number}", found
        except csv.Error as error:
            raise DataError(f"{path}: no table: {error}.") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 ({error}). Save it as UTF-8.") from error
