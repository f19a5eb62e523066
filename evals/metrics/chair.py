"""CHAIR: the objects a caption names that are not in the picture, in three dialects.

Source: Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018, arXiv:1809.02156. The dialect "pattern"
is the stand-alone script of Maxlinn/CHAIR-metric-standalone at 640c507, which adds recall, to the last digit;
"wordnet" is the script of OPERA (shikiw/OPERA at 61426ef) and PAI (LALBJ/PAI at 9bbd8bd, which adds precision and F1);
the default, "ours", repairs what they read wrongly. Numbers of different dialects don't compare: name it.

A method can win CHAIR by saying less: read recall, F1 and length beside it, and CHAIR at equal limits of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.captions import COLUMNS, DIALECTAL, SCORES, counts, prefix
from lvlm_guard.evals.metrics.captions import Caption as Caption
from lvlm_guard.evals.metrics.metric import Array, Batch, Items, Metric, Score
from lvlm_guard.evals.metrics.objects import Dialect, ObjectWords, coco_words, vocabulary_words
from lvlm_guard.evals.spec import jsonl
from lvlm_guard.evals.spec.answers import LIMITS

ImageId = int | str


def score(
    rows: Iterable[Mapping[str, Any]],
    objects: Mapping[Any, Iterable[str]],
    dialect: Dialect = "ours",
    vocabulary: Iterable[str] | Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return "dialect", all `SCORES` (shares in 0 to 1), and the sums of all `COLUMNS`, of captions of pictures.

    Args:
        rows: each with `image_id` (see there) and `caption`.
        objects: image id -> the names of the objects in the picture.
        dialect: how captions are read. "pattern" takes a picture that is not in `objects` for an empty one, as the
            published script does; otherwise that is an error.
        vocabulary: nouns (or noun -> object) that take the place of the 80 COCO objects.

    Raises:
        DataError: a field is missing, a picture has no ground truth, a ground truth names no known
            object, the dialect is unknown or lacks its data, or a dialect is given with a vocabulary.
    """
    sums = counts(compare(rows, objects, dialect, vocabulary)).sum(axis=0)
    values = {metric: float(score.of(sums)) for metric, score in SCORES.items()}
    whole = {name: int(value) for name, value in zip(COLUMNS.names, sums, strict=True) if name not in values}
    return {"dialect": dialect if vocabulary is None else "vocabulary", **values, **whole}


def compare(
    rows: Iterable[Mapping[str, Any]],
    objects: Mapping[Any, Iterable[str]],
    dialect: Dialect = "ours",
    vocabulary: Iterable[str] | Mapping[str, str] | None = None,
) -> list[Caption]:
    """Read each caption and compare it with its picture; arguments and errors as `score`."""
    if dialect != "ours" and vocabulary is not None:
        raise DataError(f"The dialect {dialect!r} is of COCO's objects: leave out the vocabulary or the dialect.")
    reader = coco_words(dialect) if vocabulary is None else vocabulary_words(vocabulary)
    truths = {image_id(key): names for key, names in objects.items()}
    known: dict[ImageId, frozenset[str]] = {}
    captions = []
    for number, row in enumerate(rows):
        jsonl.check_fields(row, ("image_id", "caption"), f"Row {number}", "row of CHAIR")
        key, caption = image_id(row["image_id"]), row["caption"]
        if not isinstance(caption, str):
            raise DataError(f"The caption of picture {key} is no text: {caption!r}.")
        if key not in known:
            known[key] = _truth(key, truths, reader, dialect)
        captions.append(Caption(key, caption, reader.find(caption), known[key]))
    return captions


def _truth(
    key: ImageId, truths: Mapping[ImageId, Iterable[str]], reader: ObjectWords, dialect: Dialect
) -> frozenset[str]:
    if dialect == "pattern":
        return frozenset(truths.get(key, ()))
    if key not in truths:
        raise DataError(
            f"Picture {key} has no ground truth: all that its caption names would count as hallucinated. Give its "
            "objects (an empty set where there are none), or dialect='pattern' to score as the published script does."
        )
    return _objects(key, truths[key], reader)


def _objects(key: ImageId, names: Iterable[str], reader: ObjectWords) -> frozenset[str]:
    """Return the objects that the names of a ground truth stand for; raises `DataError` where one stands for none."""
    if isinstance(names, str):
        raise DataError(f"The ground truth of picture {key} is the text {names!r}: give a set of names.")
    own = set(reader.nodes.values())
    nodes = set()
    for name in names:
        node = name if name in own else reader.nodes.get(name)
        if node is None:
            near = get_close_matches(str(name), sorted(own), n=1)
            raise DataError(
                f"The ground truth of picture {key} names {name!r}, which is none of the {len(own)} objects"
                + (f"; did you mean {near[0]!r}?" if near else ".")
            )
        nodes.add(node)
    return frozenset(nodes)


def image_id(value: Any) -> ImageId:
    """Return a picture's id: a number where there is one ("COCO_val2014_000000310196.jpg": 310196), else the text."""
    if isinstance(value, int):
        return int(value)
    text = str(value)
    stem = text.rpartition("/")[2].partition(".")[0].rpartition("_")[2]
    return int(stem) if re.fullmatch(r"[0-9]+", stem) else text


def read_objects(path: str | Path) -> dict[ImageId, frozenset[str]]:
    """Read a ground truth: {"categories": [names], "images": {id: [indices into categories]}}, .gz too."""
    table = jsonl.document(path)
    try:
        names = table["categories"]
        return {image_id(key): frozenset(names[i] for i in indices) for key, indices in table["images"].items()}
    except (KeyError, TypeError, IndexError, AttributeError):
        raise DataError(
            f"{path} is no ground truth: it needs 'categories' (names) and 'images' (id -> indices of names)."
        ) from None


SUFFIX = {"vocabulary": "", "ours": "", "pattern": "_official", "wordnet": "_wordnet"}
"""Dialect -> what follows a metric's name; before "@64", the limit of tokens."""


class Chair(Metric):
    """Captions at every limit of tokens that a run gives, in the dialects that the task names ("about", "dialects").

    Truths are names of objects. With a vocabulary there are no dialects.
    """

    def __init__(self, task: Mapping[str, Any], items: Items) -> None:
        super().__init__(task, items)
        self.readers: dict[str, ObjectWords]
        if vocabulary := task.get("vocabulary"):
            self.readers = {"vocabulary": vocabulary_words(vocabulary)}
        else:
            dialects = (task.get("about") or {}).get("dialects") or ("ours", "pattern")
            self.readers = {dialect: coco_words(dialect) for dialect in dialects}
        self.most = task.get("max_new_tokens") or LIMITS[-1]
        self.limits = (None, *(limit for limit in LIMITS if limit <= self.most))
        reader = next(iter(self.readers.values()))
        self.truths = [_objects(key, names, reader) for key, names in zip(items.keys, items.truths, strict=True)]
        self.lengths_known = False

    def count(self, batch: Batch) -> Array:
        """Return the `captions.COLUMNS` of each caption, for each dialect and limit; 0 where lengths are not known."""
        found = np.zeros((len(batch.texts), len(self.readers), len(self.limits), len(COLUMNS.names)))
        for n, (place, text, ended, ends) in enumerate(
            zip(batch.places.tolist(), batch.texts, batch.ended.tolist(), batch.cut_at, strict=True)
        ):
            self.lengths_known |= ends is not None
            parts: list[tuple[int | None, str]] = [(None, text)]
            if ends is not None:
                parts += [(limit, prefix(text, ends, limit)) for limit in self.limits if limit]
            cut = [part != text or (not ended and limit in (None, self.most)) for limit, part in parts]
            for m, reader in enumerate(self.readers.values()):
                known = {part: Caption(place, part, reader.find(part), self.truths[place]) for _, part in set(parts)}
                found[n, m, : len(parts)] = counts([known[part] for _, part in parts], cut)
        return found.reshape(len(batch.texts), -1)

    def scores(self) -> Mapping[str, Score]:
        """Return the scores: each dialect's own, and all at each limit of tokens where lengths are known."""
        found: dict[str, Score] = {}
        for m, dialect in enumerate(self.readers):
            for k, limit in enumerate(self.limits if self.lengths_known else (None,)):
                start = (m * len(self.limits) + k) * len(COLUMNS.names)
                for metric, score in SCORES.items():
                    if m == 0 or metric in DIALECTAL:
                        suffix = SUFFIX[dialect] if metric in DIALECTAL else ""
                        name = f"{metric}{suffix}{f'@{limit}' if limit else ''}"
                        found[name] = replace(score, of=_from(start, score.of), limit=limit, dialect=dialect)
        return found


def _from(start: int, of: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Return a score of the counts that begin at a column; NaN where no caption was counted there."""
    return lambda c: np.where(c[..., start] > 0, of(c[..., start : start + len(COLUMNS.names)]), np.nan)
