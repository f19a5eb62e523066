"""CHAIR: the objects a caption names that are not in the picture.

Source: Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018, arXiv:1809.02156, in
the stand-alone script of Maxlinn/CHAIR-metric-standalone at 640c507, which adds recall. With
`parity="official"` its numbers come out to the last digit; the default repairs what it reads wrongly
and says how much that changes.

A method can win CHAIR by saying less: read recall and length beside it.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypedDict

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import tokens
from lvlm_guard.evals.metrics.objects import Found, ObjectWords, coco_words, vocabulary_words
from lvlm_guard.evals.metrics.pope import ratio

ImageId = int | str
Parity = Literal["official"]


class Shares(TypedDict):
    """The three shares, in 0 to 1."""

    chair_s: float
    chair_i: float
    object_recall: float


class Scores(Shares):
    """Scores of a set of captions.

    `chair_s` is the share of captions with a hallucinated object, `chair_i` that of the object words
    that are hallucinated (repeats counted), over all captions together; `object_recall` the share of
    the pictures' objects that are named; `length` the mean number of words between blanks.
    `repeated_words` are those that name an object again; CHAIR_i counts them each time, so a method that
    repeats what is there lowers it.
    `official`: the three shares as the published script reads the same captions; None where it is
    not defined (own vocabulary) or is what was asked for.
    """

    length: float
    captions: int
    hallucinated_captions: int
    object_words: int
    hallucinated_words: int
    repeated_words: int
    recalled_objects: int
    ground_truth_objects: int
    official: Shares | None


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
    parity: Parity | None = None,
    vocabulary: Iterable[str] | Mapping[str, str] | None = None,
) -> Scores:
    """Score captions against the objects of their pictures.

    Args:
        rows: each with `image_id` and `caption`.
        objects: image id -> the names of the objects in the picture. Ids are numbers, or file names
            whose number after the last underscore counts ("COCO_val2014_000000310196.jpg").
        parity: "official" reads as the published script does, slips included, and takes a picture
            that is not in `objects` for an empty one; by default that is an error.
        vocabulary: nouns (or noun -> object) that take the place of the 80 COCO objects.

    Raises:
        DataError: a field is missing, a picture has no ground truth, a ground truth names no known
            object, or `parity` is given with a vocabulary.
    """
    captions = compare(rows, objects, parity, vocabulary)
    shares = _shares(captions)
    official = None
    if parity is None and vocabulary is None:
        official = _shares(as_published(captions))
    return Scores(
        **shares,
        length=ratio(sum(c.length for c in captions), len(captions)),
        captions=len(captions),
        hallucinated_captions=sum(bool(c.hallucinated) for c in captions),
        object_words=sum(len(c.found.words) for c in captions),
        hallucinated_words=sum(len(c.hallucinated) for c in captions),
        repeated_words=sum(c.repeated for c in captions),
        recalled_objects=sum(len(c.recalled) for c in captions),
        ground_truth_objects=sum(len(c.truth) for c in captions),
        official=official,
    )


def _shares(captions: list[Caption]) -> Shares:
    return Shares(
        chair_s=ratio(sum(bool(c.hallucinated) for c in captions), len(captions)),
        chair_i=ratio(sum(len(c.hallucinated) for c in captions), sum(len(c.found.words) for c in captions)),
        object_recall=ratio(sum(len(c.recalled) for c in captions), sum(len(c.truth) for c in captions)),
    )


def compare(
    rows: Iterable[Mapping[str, Any]],
    objects: Mapping[Any, Iterable[str]],
    parity: Parity | None = None,
    vocabulary: Iterable[str] | Mapping[str, str] | None = None,
) -> list[Caption]:
    """Read each caption and compare it with its picture; arguments and errors as `score`."""
    if parity not in (None, "official"):
        raise DataError(f"parity is {parity!r}: give None, or 'official' for the published script's numbers.")
    if parity and vocabulary is not None:
        raise DataError("parity='official' is defined for COCO's objects: leave out the vocabulary or the parity.")
    reader = coco_words(parity is not None) if vocabulary is None else vocabulary_words(vocabulary)
    truths = {image_id(key): names for key, names in objects.items()}
    known: dict[ImageId, frozenset[str]] = {}
    captions = []
    for number, row in enumerate(rows):
        for field in ("image_id", "caption"):
            if field not in row:
                raise DataError(
                    f"Row {number} has no {field!r}; it has {', '.join(map(repr, row)) or 'nothing'}. CHAIR rows need "
                    "image_id and caption."
                )
        key, caption = image_id(row["image_id"]), row["caption"]
        if not isinstance(caption, str):
            raise DataError(f"The caption of picture {key} is no text: {caption!r}.")
        if key not in known:
            known[key] = _truth(key, truths, reader, parity)
        captions.append(Caption(key, caption, reader.find_tokens(tokens.words(caption)), known[key]))
    return captions


def as_published(captions: Iterable[Caption]) -> list[Caption]:
    """Return captions over COCO's objects as the published script reads them, slips included."""
    reader = coco_words(official=True)
    return [Caption(c.image_id, c.caption, reader.find(c.caption), c.truth) for c in captions]


def _truth(
    key: ImageId, truths: Mapping[ImageId, Iterable[str]], reader: ObjectWords, parity: Parity | None
) -> frozenset[str]:
    if parity:
        return frozenset(truths.get(key, ()))
    if key not in truths:
        raise DataError(
            f"Picture {key} has no ground truth: all that its caption names would count as hallucinated. Give its "
            "objects (an empty set where there are none), or parity='official' to score as the published script does."
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
        DataError: the file can't be read, is empty, or a row lacks a field.
    """
    rows = _json_rows(path)
    for number, row in enumerate(rows, 1):
        for key in (id_key, caption_key):
            if not isinstance(row, dict) or key not in row:
                raise DataError(
                    f"Row {number} of {path} has no {key!r}: say which fields hold the picture's id and the caption."
                )
    return [{"image_id": image_id(row[id_key]), "caption": row[caption_key]} for row in rows]


def read_objects(path: str | Path) -> dict[ImageId, frozenset[str]]:
    """Read a ground truth: {"categories": [names], "images": {id: [indices into categories]}}, .gz too.

    Raises:
        DataError: the file can't be read or is no such table.
    """
    (table,) = _json_rows(path)[:1] or [{}]
    try:
        names = table["categories"]
        return {image_id(key): frozenset(names[i] for i in indices) for key, indices in table["images"].items()}
    except (KeyError, TypeError, IndexError, AttributeError):
        raise DataError(
            f"{path} is no ground truth: it needs 'categories' (names) and 'images' (id -> indices of names)."
        ) from None


def _json_rows(path: str | Path) -> list[Any]:
    try:
        content = Path(path).read_bytes()
        text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read: {error}.") from error
    try:
        whole = json.loads(text)
        rows = whole if isinstance(whole, list) else [whole]
    except json.JSONDecodeError:
        try:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        except json.JSONDecodeError as error:
            raise DataError(f"{path} is neither a JSON list nor JSON lines: {error}.") from None
    if not rows:
        raise DataError(f"{path} holds no row.")
    return rows
