"""CHAIR: the objects a caption names that are not in the picture, in three dialects, at every limit of tokens.

Source: Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018, arXiv:1809.02156. The dialect "pattern"
is the stand-alone script of Maxlinn/CHAIR-metric-standalone at 640c507, which adds recall, to the last digit;
"wordnet" is the script of OPERA (shikiw/OPERA at 61426ef), DeCo, lmms-eval and PAI (LALBJ/PAI at 9bbd8bd, which adds
precision and F1); the default, "ours", repairs what they read wrongly. Numbers of different dialects don't compare.

A method can win CHAIR by saying less: read recall, F1 and length beside it, and CHAIR at equal limits of tokens. One
greedy run gives CHAIR at every limit, for it begins as a shorter one would; beams and methods that look back do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import tokens
from lvlm_guard.evals.metrics.metric import Array, Batch, Columns, Items, Metric, Score
from lvlm_guard.evals.metrics.objects import Dialect, Found, ObjectWords, Vocabulary, coco_words, vocabulary_words
from lvlm_guard.evals.spec import jsonl
from lvlm_guard.evals.spec.answers import LIMITS

ImageId = int | str
Rows = Iterable[Mapping[str, Any]]

COLUMNS = Columns(
    "captions hallucinated_captions object_words hallucinated_words recalled_objects ground_truth_objects words "
    "repeated_words objects distinct_1 with_words repeat_4 cut empty"
)
SCORES: dict[str, Score] = {
    "chair_s": COLUMNS.ratio("hallucinated_captions / captions", "lower"),
    "chair_i": COLUMNS.ratio("hallucinated_words / object_words", "lower"),
    "object_recall": COLUMNS.ratio("recalled_objects / ground_truth_objects"),
    "precision": COLUMNS.ratio("recalled_objects / objects"),
    "f1": COLUMNS.ratio("recalled_objects recalled_objects / ground_truth_objects objects"),
    "length": COLUMNS.ratio("words / captions", ""),
    "repeats": COLUMNS.ratio("repeated_words / object_words", ""),
    "objects_named": COLUMNS.ratio("objects / captions", ""),
    "distinct_1": COLUMNS.ratio("distinct_1 / with_words", ""),
    "repeat_4": COLUMNS.ratio("repeat_4 / captions", "lower"),
    "cut": COLUMNS.ratio("cut / captions", ""),
    "empty": COLUMNS.ratio("empty / captions", "lower"),
}
"""Object words count with their repeats, "objects" once a caption: a method that repeats what is there ("repeats")
lowers CHAIR_i. Length is in words between blanks. "cut" is the share of captions that a limit of tokens cut, "empty" of
those without a word, which are a void run and no clean one."""

# the others are of the text, whatever the dialect
DIALECTAL = ("chair_s", "chair_i", "object_recall", "precision", "f1", "repeats", "objects_named")


class Caption(NamedTuple):
    """One caption, as given, the objects it names, and those in its picture."""

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
    def spans(self) -> list[tuple[str, int, int]]:
        """The object of each object word, and where the word stands: start and end, in characters."""
        places, found = tokens.spans(self.caption), self.found
        each = zip(found.nodes, found.indices, found.widths, strict=True)
        return [(node, places[at][0], places[at + width - 1][1]) for node, at, width in each]

    @property
    def recalled(self) -> frozenset[str]:
        """Objects of the picture that the caption names."""
        return self.truth & frozenset(self.found.nodes)


def counts(c: Caption) -> list[float]:
    """Return the `COLUMNS` of a caption, none of them cut."""
    named, objects, wrong = len(c.found.words), len(set(c.found.nodes)), len(c.hallucinated)
    row = [1, wrong > 0, named, wrong, len(c.recalled), len(c.truth), len(c.caption.split()), named - objects, objects]
    return [*row, *variety(c.caption), 0, not c.caption.strip()]


def variety(caption: str) -> tuple[float, bool, float]:
    """Return Distinct-1, whether there are words that it is of, and how much loops. Distinct-1 (Li et al., NAACL 2016,
    arXiv:1510.03055) is the share of different words, which falls with length by itself: compare it at one limit. Loops
    are the share of runs of four words that stood before."""
    words = re.findall(r"[^\W_]+(?:['’][^\W_]+)*", caption.lower())
    fours = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    distinct = len(set(words)) / len(words) if words else 0.0
    return distinct, bool(words), 1 - len(set(fours)) / len(fours) if fours else 0.0


def prefix(text: str, cut_at: Sequence[int], limit: int) -> str:
    """Return what of a caption stood after its first `limit` tokens; raises `DataError` where that is not known.
    `cut_at` are the characters after each of `LIMITS` tokens, as the table of answers has them."""
    if limit not in LIMITS or len(cut_at) != len(LIMITS):
        raise DataError(f"Captions are cut at {', '.join(map(str, LIMITS))} tokens, not at {limit} by {list(cut_at)}.")
    end = cut_at[LIMITS.index(limit)]
    if not 0 <= end <= len(text):
        raise DataError(f"A caption of {len(text)} characters can't be cut after {end}: its row of answers is damaged.")
    return text[:end]


def score(
    rows: Rows, objects: Mapping[Any, Iterable[str]], dialect: Dialect = "ours", vocabulary: Vocabulary | None = None
) -> dict[str, Any]:
    """Return "dialect", all `SCORES` (shares in 0 to 1), and the sums of all `COLUMNS`; arguments as `compare`."""
    table = [counts(caption) for caption in compare(rows, objects, dialect, vocabulary)]
    sums = np.array(table, float).reshape(-1, len(COLUMNS.names)).sum(axis=0)
    values = {metric: float(score.of(sums)) for metric, score in SCORES.items()}
    whole = {name: int(value) for name, value in zip(COLUMNS.names, sums, strict=True) if name not in values}
    return {"dialect": dialect if vocabulary is None else "vocabulary", **values, **whole}


def compare(
    rows: Rows, objects: Mapping[Any, Iterable[str]], dialect: Dialect = "ours", vocabulary: Vocabulary | None = None
) -> list[Caption]:
    """Read each caption and compare it with its picture.

    Args:
        rows: each with `image_id` (see there) and `caption`.
        objects: image id -> the names of the objects in the picture.
        dialect: how captions are read. "pattern" takes a picture that is not in `objects` for an empty one, as the
            published script does; otherwise that is an error.
        vocabulary: takes the place of the 80 COCO objects.

    Raises `DataError` (a field or ground truth is missing, a ground truth names no known object, the dialect is unknown
    or lacks its data, or is given with a vocabulary).
    """
    if dialect != "ours" and vocabulary is not None:
        raise DataError(f"The dialect {dialect!r} is of COCO's objects: leave out the vocabulary or the dialect.")
    reader = coco_words(dialect) if vocabulary is None else vocabulary_words(vocabulary)
    truths = {image_id(key): names for key, names in objects.items()}
    captions = []
    for number, row in enumerate(rows):
        jsonl.check_fields(row, ("image_id", "caption"), f"Row {number}", "row of CHAIR")
        key, caption = image_id(row["image_id"]), row["caption"]
        if not isinstance(caption, str):
            raise DataError(f"The caption of picture {key} is no text: {caption!r}.")
        if key not in truths and dialect != "pattern":
            told = "all that its caption names would count as hallucinated. Give its objects, or dialect='pattern'."
            raise DataError(f"Picture {key} has no ground truth: {told}")
        names = truths.get(key, ())
        truth = frozenset(names) if dialect == "pattern" else _objects(key, names, reader)
        captions.append(Caption(key, caption, reader.find(caption), truth))
    return captions


def _objects(key: ImageId, names: Iterable[str], reader: ObjectWords) -> frozenset[str]:
    if isinstance(names, str):
        raise DataError(f"The ground truth of picture {key} is the text {names!r}: give a set of names.")
    nodes = {node: node for node in reader.nodes.values()}  # an object's own name stands for itself
    for name in names:
        if name not in nodes and name not in reader.nodes:
            near = (
                "".join(f"; did you mean {one!r}?" for one in get_close_matches(str(name), sorted(nodes), n=1)) or "."
            )
            told = f"names {name!r}, which is none of the {len(nodes)} objects{near}"
            raise DataError(f"The ground truth of picture {key} {told}")
    return frozenset(nodes.get(name) or reader.nodes[name] for name in names)


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
        told = "it needs 'categories' (names) and 'images' (id -> indices of names)"
        raise DataError(f"{path} is no ground truth: {told}.") from None


_CUT = COLUMNS.names.index("cut")
SUFFIX = {"vocabulary": "", "ours": "", "pattern": "_official", "wordnet": "_wordnet"}  # of a dialect's metrics


class Chair(Metric):
    """Captions at every limit of tokens that a run gives, in the dialects that the task names ("about", "dialects").
    Truths are names of objects. With a vocabulary there are no dialects."""

    def __init__(self, task: Mapping[str, Any], items: Items) -> None:
        super().__init__(task, items)
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
        """Return the `COLUMNS` of each caption, for each dialect and limit; 0 where lengths are not known."""
        found = np.zeros((len(batch.texts), len(self.readers), len(self.limits), len(COLUMNS.names)))
        answers = zip(found, batch.places.tolist(), batch.texts, batch.ended.tolist(), batch.cut_at, strict=True)
        for row, place, text, ended, ends in answers:
            self.lengths_known |= ends is not None
            parts = [prefix(text, ends, limit) if limit and ends is not None else text for limit in self.limits]
            for reader, of_reader in zip(self.readers.values(), row, strict=True):
                named = {part: Caption(place, part, reader.find(part), self.truths[place]) for part in set(parts)}
                known = {part: counts(caption) for part, caption in named.items()}
                for limit, part, of_limit in zip(self.limits, parts, of_reader, strict=True):
                    if limit is None or ends is not None:
                        of_limit[:] = known[part]
                        of_limit[_CUT] = part != text or (not ended and limit in (None, self.most))
        return found.reshape(len(batch.texts), -1)

    def scores(self) -> Mapping[str, Score]:
        """Return the scores: each dialect's own, and all at each limit of tokens where lengths are known."""
        found: dict[str, Score] = {}
        width = len(COLUMNS.names)
        blocks = [(dialect, limit) for dialect in self.readers for limit in self.limits]
        for start, (dialect, limit) in zip(range(0, width * len(blocks), width), blocks, strict=True):
            if limit is None or self.lengths_known:
                for metric in SCORES if dialect == blocks[0][0] else DIALECTAL:
                    name = metric + (SUFFIX[dialect] if metric in DIALECTAL else "") + (f"@{limit}" if limit else "")
                    columns = slice(start, start + width)
                    found[name] = SCORES[metric].where_counted().at(columns, limit=limit, dialect=dialect)
        return found
