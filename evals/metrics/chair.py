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
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import captions as texts
from lvlm_guard.evals.metrics.objects import Dialect, Found, ObjectWords, coco_words, vocabulary_words
from lvlm_guard.evals.spec import jsonl

ImageId = int | str
Array = NDArray[np.float64]


def share(part: Array, whole: Array) -> Array:
    """Return part / whole, and 0.0 for 0/0."""
    found: Array = np.divide(part, whole, out=np.zeros_like(part, dtype=float), where=np.asarray(whole) != 0)
    return found


COLUMNS = (
    "captions",
    "hallucinated_captions",
    "object_words",
    "hallucinated_words",
    "recalled_objects",
    "ground_truth_objects",
    "words",
    "repeated_words",
    "objects",
    "distinct_1",
    "with_words",
    "repeat_4",
    "cut",
    "empty",
)
"""What `counts` counts of each caption; all but the two statistics of words are whole numbers."""


def _share(part: str, whole: str) -> Callable[[Array], Array]:
    top, bottom = COLUMNS.index(part), COLUMNS.index(whole)
    return lambda c: share(c[..., top], c[..., bottom])


SCORES: dict[str, Callable[[Array], Array]] = {
    "chair_s": _share("hallucinated_captions", "captions"),
    "chair_i": _share("hallucinated_words", "object_words"),
    "object_recall": _share("recalled_objects", "ground_truth_objects"),
    "precision": _share("recalled_objects", "objects"),
    # 2PR / (P + R) of the pooled two
    "f1": lambda c: share(2 * c[..., 4], c[..., 5] + c[..., 8]),
    "length": _share("words", "captions"),
    "repeats": _share("repeated_words", "object_words"),
    "objects_named": _share("objects", "captions"),
    "distinct_1": _share("distinct_1", "with_words"),
    "repeat_4": _share("repeat_4", "captions"),
    "cut": _share("cut", "captions"),
    "empty": _share("empty", "captions"),
}
"""Metric -> its value from summed `counts`, [..., 14] -> [...].

`chair_s` is the share of captions with a hallucinated object, `chair_i` that of the object words that are hallucinated
(repeats counted), over all captions together; `object_recall` the share of the pictures' objects that are named, and
`precision` that of the objects named (each once a caption) that are there; `f1` of these two. `length` is in words
between blanks. `repeats` is the share of object words that name an object again: CHAIR_i counts them each time, so a
method that repeats what is there lowers it. `distinct_1`, `repeat_4`: see `captions`; `cut` the share of captions that
a limit of tokens cut; `empty` of those without a word, which are a void run and no clean one.
"""

DIALECTAL = ("chair_s", "chair_i", "object_recall", "precision", "f1", "repeats", "objects_named")
"""The scores that depend on the dialect; the others are of the text alone."""

DIRECTIONS = {"chair_s": "lower", "chair_i": "lower", "repeat_4": "lower", "empty": "lower"} | dict.fromkeys(
    ("object_recall", "precision", "f1"), "higher"
)
"""Which way is better; the scores that are not here have no better end."""


@dataclass(frozen=True)
class Caption:
    """One caption, read and compared with its picture.

    Args:
        image_id: the picture's id.
        caption: as given.
        found: the objects it names.
        truth: the objects in the picture.
    """

    image_id: ImageId
    caption: str
    found: Found
    truth: frozenset[str]

    @property
    def hallucinated(self) -> list[tuple[str, str, int]]:
        """Word, object and token index of each object word whose object is not in the picture."""
        named = zip(self.found.words, self.found.nodes, self.found.indices, strict=True)
        return [(word, node, index) for word, node, index in named if node not in self.truth]

    @property
    def recalled(self) -> frozenset[str]:
        """Objects of the picture that the caption names."""
        return self.truth & frozenset(self.found.nodes)

    @property
    def repeated(self) -> int:
        """Number of object words whose object was named before in the caption."""
        return len(self.found.nodes) - len(set(self.found.nodes))

    @property
    def length(self) -> int:
        """Number of words between blanks."""
        return len(self.caption.split())


def score(
    rows: Iterable[Mapping[str, Any]],
    objects: Mapping[Any, Iterable[str]],
    dialect: Dialect = "ours",
    vocabulary: Iterable[str] | Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Score captions against the objects of their pictures.

    Args:
        rows: each with `image_id` and `caption`.
        objects: image id -> the names of the objects in the picture. Ids are numbers, or file names
            whose number after the last underscore counts ("COCO_val2014_000000310196.jpg").
        dialect: how captions are read. "pattern" takes a picture that is not in `objects` for an empty one, as the
            published script does; otherwise that is an error.
        vocabulary: nouns (or noun -> object) that take the place of the 80 COCO objects.

    Returns:
        "dialect", all `SCORES` (shares in 0 to 1), and the sums of all `COLUMNS`.

    Raises:
        DataError: a field is missing, a picture has no ground truth, a ground truth names no known
            object, the dialect is unknown or lacks its data, or a dialect is given with a vocabulary.
    """
    sums = counts(compare(rows, objects, dialect, vocabulary)).sum(axis=0)
    values = {metric: float(of(sums)) for metric, of in SCORES.items()}
    whole = {name: value for name, value in zip(COLUMNS, sums.tolist(), strict=True) if name not in values}
    return {"dialect": dialect if vocabulary is None else "vocabulary", **values} | {
        k: int(v) for k, v in whole.items()
    }


def counts(captions: Iterable[Caption], cut: Iterable[bool] | None = None) -> Array:
    """Return the `COLUMNS` of each caption, [N, 14].

    Args:
        captions: as `compare` returns them.
        cut: whether each was cut at a limit of tokens; None: none was.
    """
    found = []
    for caption in captions:
        read = texts.words(caption.caption)
        found.append(
            [
                1,
                bool(caption.hallucinated),
                len(caption.found.words),
                len(caption.hallucinated),
                len(caption.recalled),
                len(caption.truth),
                caption.length,
                caption.repeated,
                len(caption.found.words) - caption.repeated,
                texts.distinct_1(read),
                bool(read),
                texts.repeat_4(read),
                0,
                not caption.caption.strip(),
            ]
        )
    table = np.array(found, dtype=float).reshape(-1, len(COLUMNS))
    if cut is not None:
        table[:, COLUMNS.index("cut")] = list(cut)
    return table


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


def in_dialect(captions: Iterable[Caption], dialect: Dialect) -> list[Caption]:
    """Return captions over COCO's objects as another dialect reads them."""
    reader = coco_words(dialect)
    return [Caption(c.image_id, c.caption, reader.find(c.caption), c.truth) for c in captions]


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
    names = truths[key]
    if isinstance(names, str):
        raise DataError(f"The ground truth of picture {key} is the text {names!r}: give a set of names.")
    nodes = set()
    own = set(reader.nodes.values())
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
    """Return a picture's id: a whole number where there is one, else the text.

    "COCO_val2014_000000310196.jpg" is 310196: the digits after the last underscore.
    """
    if isinstance(value, int):
        return int(value)
    text = str(value)
    stem = text.rpartition("/")[2].partition(".")[0].rpartition("_")[2]
    return int(stem) if re.fullmatch(r"[0-9]+", stem) else text


def read_captions(path: str | Path, id_key: str = "image_id", caption_key: str = "caption") -> list[dict[str, Any]]:
    """Read captions for `score`: a JSON list or JSON lines, .gz too.

    Args:
        path: the file.
        id_key, caption_key: names of the two fields; answer files of AGLA have "image" and "text".

    Raises:
        DataError: the file can't be read, is empty, a row lacks a field, or a picture has two captions.
    """
    rows = jsonl.read(path, (id_key, caption_key), (id_key,), "caption")
    return [{"image_id": image_id(row[id_key]), "caption": row[caption_key]} for _, row in rows]


def read_objects(path: str | Path) -> dict[ImageId, frozenset[str]]:
    """Read a ground truth: {"categories": [names], "images": {id: [indices into categories]}}, .gz too.

    Raises:
        DataError: the file can't be read or is no such table.
    """
    table = jsonl.document(path)
    try:
        names = table["categories"]
        return {image_id(key): frozenset(names[i] for i in indices) for key, indices in table["images"].items()}
    except (KeyError, TypeError, IndexError, AttributeError):
        raise DataError(
            f"{path} is no ground truth: it needs 'categories' (names) and 'images' (id -> indices of names)."
        ) from None
