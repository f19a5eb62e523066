"""`amber`, `amber_captions`: AMBER's yes/no questions, and captions of its pictures.

    lvlm-guard eval run --model M --tasks amber,amber_captions --images AMBER/image [--annotations AMBER/data]

AMBER's texts (Apache-2.0) are fetched where `--annotations` gives no copy of them; its pictures are behind a link in
github.com/junyangwang0410/AMBER. Captions are scored by equal words ("AMBER (lexical)"). The published score stands
beside it where NLTK's data are, and spaCy's en_core_web_lg or a table of words alike is: `words_alike.json` in that
folder, which `python -m lvlm_guard.evals.tasks.amber FOLDER` writes where the model is installed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import tokens
from lvlm_guard.evals.metrics.amber import ALIKE, BLOCKS, MODEL, Words, vectors
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.jsonl import content, document, read
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.benchmark import STOCK_SUFFIX, copied, made

GENERATIVE = "generative"
TABLE = "words_alike.json"

Row = dict[str, Any]


class Amber:
    """AMBER's texts, in a folder (.gz too) or fetched; raises `DataError` where they can't be had or read."""

    def __init__(self, folder: str | Path = "") -> None:
        self.folder = folder
        relation, safe = document(self._path("relation.json")), content(self._path("safe_words.txt")).decode().split()
        self.words = Words(relation, frozenset(safe))
        known = read(self._path("annotations.json"), ("id", "type", "truth"), what="annotation of AMBER")
        self.annotations: dict[int, Row] = {row["id"]: row for _, row in known}

    @cached_property
    def queries(self) -> dict[int, Row]:
        """What is asked, by id, in AMBER's order; raises `DataError`."""
        rows = read(self._path("query_all.json"), ("id", "image", "query"), what="query of AMBER")
        return {row["id"]: row for _, row in rows}

    def asked(self, captions: bool) -> Iterator[tuple[Row, Row]]:
        """Yield the query and annotation of each picture to caption, or of each yes/no question."""
        for number, query in self.queries.items():
            known = self.annotation(number)
            if (known["type"] == GENERATIVE) == captions:
                yield query, known

    def annotation(self, number: int) -> Row:
        """Return the annotation of an id; raises `DataError` where there is none."""
        if number not in self.annotations:
            raise DataError(f"AMBER has no question {number!r}: its ids are 1 to {len(self.annotations)}.")
        return self.annotations[number]

    def about(self) -> tuple[dict[str, Any], str]:
        """Return what captions are scored by, and what to know of it; "similarity" is there where all it needs is."""
        told = {"association": dict(self.words.associates), "safe_words": sorted(self.words.safe)}
        table = Path(self.folder) / TABLE
        similarity = str(table) if self.folder and table.is_file() else MODEL if find_spec(MODEL) else ""
        needs = f"The published score needs spaCy's {MODEL}, or {TABLE} in the folder of --annotations."
        try:
            tokens.check("AMBER's published score of captions")
        except DataError as error:
            similarity, needs = "", str(error)
        if similarity:
            return told | {"similarity": similarity}, ""
        return told, f"amber_captions: AMBER (lexical) alone, which compares with no paper's numbers. {needs}"

    def _path(self, name: str) -> Path:
        return copied("amber", name, self.folder, "--annotations")


def amber(settings: Settings) -> list[EvalTask]:
    items = []
    for query, known in _given(settings).asked(captions=False):
        key, question, tags = str(query["id"]), query["query"], {"type": known["type"]}
        asked = question + STOCK_SUFFIX, (), question, known["truth"], rows_of(known), tags
        items.append(Item(key, query["image"], *asked))
    return [made("amber", settings, items)]


def rows_of(annotation: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the result rows that a question counts in; raises `DataError` where it is no yes/no question."""
    if annotation["type"] not in BLOCKS:
        told = f"is of the type {annotation['type']!r}: no yes/no question"
        raise DataError(f"AMBER's question {annotation['id']} {told}.")
    return "amber", *(f"amber_{block}" for block in BLOCKS[annotation["type"]])


def amber_captions(settings: Settings) -> list[EvalTask]:
    """Return the pictures of AMBER that are captioned."""
    data = _given(settings)
    items = (
        Item(str(q["id"]), q["image"], q["query"], (), truth=caption_truth(known), rows=("amber_captions",))
        for q, known in data.asked(captions=True)
    )
    about, warning = data.about()
    about["protocol"] = "captions (arXiv:2311.07397)" + ("" if about.get("similarity") else ", AMBER (lexical)")
    return [made("amber_captions", settings, items, about | {"warnings": [warning] if warning else []})]


def caption_truth(annotation: Mapping[str, Any]) -> Row:
    """Return what a caption is held against: what is in the picture, and what models imagine there."""
    return {name: annotation[name] for name in ("truth", "hallu")}


def _given(settings: Settings) -> Amber:
    given = settings.annotations  # may be COCO's, of another task of the run
    return Amber(given if given and any(Path(given).glob("**/relation.json*")) else "")


def write_table(path: Path, words: Words) -> int:
    """Write all pairs of AMBER's words that spaCy's `MODEL` holds alike; `DataError` where that is not installed."""
    documents = {word: vectors()(word) for word in sorted(words.vocabulary)}
    cosines = ((a, b, float(documents[a].similarity(documents[b]))) for a, b in combinations(documents, 2))
    lines = [json.dumps(pair) for pair in cosines if pair[2] > ALIKE]
    path.write_text("[\n{}\n]\n".format(",\n".join(lines)), encoding="utf-8")
    return len(lines)


if __name__ == "__main__":
    place = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    print(f"{write_table(place / TABLE, Amber(place).words)} pairs of words alike in {place / TABLE}")
