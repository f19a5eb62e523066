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
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import lemmas
from lvlm_guard.evals.metrics.amber import BLOCKS
from lvlm_guard.evals.metrics.amber_captions import ALIKE, MODEL, Words, vectors
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.jsonl import check_fields, content, document
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.tasks.fetching import Published, fetch, only_test
from lvlm_guard.evals.tasks.pictures import find_pictures
from lvlm_guard.evals.tasks.pope.task import STOCK_SUFFIX

GENERATIVE, CAPTION_TOKENS, ANSWER_TOKENS = "generative", 512, 128
QUESTIONS, CAPTIONED = 14_216, 1_004
"""How many yes/no questions and pictures to caption there are."""
TABLE = "words_alike.json"

_AMBER = "https://raw.githubusercontent.com/junyangwang0410/AMBER/534babf6bbfcce2e735c26289dedfb21cef3c939/data"
FILES = {
    Path(path).name: Published(f"{_AMBER}/{path}", sha256)
    for path, sha256 in {
        "annotations.json": "db22a436c4836fbb295e60b4e80d519573077579fb7032f01b193c1bd022b797",
        "query/query_all.json": "127680ae61f7d4a92d2f7f07a8deaec07f0689b194d2c7c0f41ead7bd2c5bcf5",
        "relation.json": "c4c1491e9bbc3209abc1888c12a1bf8413bdbab8a0d8be04b990a2e7680cf23e",
        "safe_words.txt": "f92cf1123f4578a2630832fac3e6ac4de36212ea55859d3bed4fd233723f4043",
    }.items()
}


class Amber:
    """AMBER's texts, in a folder (.gz too) or fetched; raises `DataError` where they can't be had or read."""

    def __init__(self, folder: str | Path = "") -> None:
        self.folder = Path(folder) if folder else None
        relation, safe = document(self._path("relation.json")), content(self._path("safe_words.txt")).decode().split()
        self.words = Words(relation, frozenset(safe))
        self.annotations: dict[int, dict[str, Any]] = {}
        for number, row in enumerate(document(self._path("annotations.json")), 1):
            check_fields(row, ("id", "type", "truth"), f"Entry {number} of AMBER's annotations", "annotation")
            self.annotations[row["id"]] = row

    def asked(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Return the query and annotation of everything that is asked, in AMBER's order; raises `DataError`."""
        found = []
        for number, query in enumerate(document(self._path("query_all.json")), 1):
            check_fields(query, ("id", "image", "query"), f"Entry {number} of AMBER's queries", "query")
            found.append((query, self.annotation(query["id"])))
        return found

    def annotation(self, number: int) -> dict[str, Any]:
        """Return the annotation of an id; raises `DataError` where there is none."""
        if number not in self.annotations:
            raise DataError(f"AMBER has no question {number!r}: its ids are 1 to {len(self.annotations)}.")
        return self.annotations[number]

    def about(self) -> tuple[dict[str, Any], str]:
        """Return what captions are scored by, and what to know of it; "similarity" is there where all it needs is."""
        told = {"association": dict(self.words.associates), "safe_words": sorted(self.words.safe)}
        table = self.folder / TABLE if self.folder else None
        similarity = str(table) if table and table.is_file() else MODEL if find_spec(MODEL) else ""
        try:
            lemmas.check("AMBER's published score of captions")
        except DataError as error:
            return told, f"amber_captions: AMBER (lexical) alone, which compares with no paper's numbers. {error}"
        if similarity:
            return told | {"similarity": similarity}, ""
        return told, (
            "amber_captions: AMBER (lexical) alone, which compares with no paper's numbers: the published score needs "
            f"spaCy's {MODEL}, or {TABLE} in the folder of --annotations."
        )

    def _path(self, name: str) -> Path:
        if self.folder is None:
            return fetch(FILES[name], "amber", option="--annotations")
        for part in ("", "data", "query", "data/query"):
            for path in (self.folder / part / name, self.folder / part / f"{name}.gz"):
                if path.is_file():
                    return path
        raise DataError(
            f"{self.folder} holds no {name}: give the folder data of github.com/junyangwang0410/AMBER with "
            "--annotations, or leave that out, and it is fetched."
        )


def amber(settings: Settings) -> list[EvalTask]:
    """Return AMBER's yes/no questions."""
    items = [
        Item(*start, query, known["truth"], rows_of(known), {"type": known["type"]})
        for start, query, known in _asked(_given(settings), settings, "amber", STOCK_SUFFIX)
    ]
    about = {
        "source": f"AMBER, {len(items)} of {QUESTIONS} questions",
        "protocol": "yes/no questions (arXiv:2311.07397); two of three right answers are no",
        "prompt": f"{{question}}{STOCK_SUFFIX}",
    }
    return [EvalTask("amber", "amber", items, settings.max_new_tokens or ANSWER_TOKENS, about=about)]


def rows_of(annotation: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the result rows that a question counts in; raises `DataError` where it is no yes/no question."""
    if annotation["type"] not in BLOCKS:
        raise DataError(
            f"AMBER's question {annotation['id']} is of the type {annotation['type']!r}: no yes/no question."
        )
    return "amber", *(f"amber_{block}" for block in BLOCKS[annotation["type"]])


def amber_captions(settings: Settings) -> list[EvalTask]:
    """Return the pictures of AMBER that are captioned."""
    data = _given(settings)
    items = [
        Item(*start, "", {name: known[name] for name in ("truth", "hallu")}, ("amber_captions",))
        for start, _, known in _asked(data, settings, "amber_captions", "")
    ]
    about, warning = data.about()
    about |= {
        "source": f"AMBER, {len(items)} of {CAPTIONED} pictures",
        "protocol": "captions (arXiv:2311.07397)" + ("" if about.get("similarity") else ", AMBER (lexical)"),
        "prompt": items[0].prompt if items else "",
        "warnings": [warning] if warning else [],
    }
    return [EvalTask("amber_captions", "amber_captions", items, settings.max_new_tokens or CAPTION_TOKENS, about=about)]


def _given(settings: Settings) -> Amber:
    only_test(settings, "AMBER")
    # --annotations may be COCO's, of another task of the run
    given = settings.annotations if list(Path(settings.annotations or ".").glob("**/relation.json*")) else ""
    return Amber(given if settings.annotations else "")


def _asked(
    data: Amber, settings: Settings, task: str, suffix: str
) -> Iterator[tuple[tuple[str, str, str, tuple[Path, ...]], str, dict[str, Any]]]:
    """Yield key, picture, prompt and file of an item, the query and its annotation, picture by picture."""
    of: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for query, known in data.asked():
        if (known["type"] == GENERATIVE) == (task == "amber_captions"):
            of.setdefault(query["image"], []).append((query, known))
    for name, path in find_pictures(list(of)[: settings.limit], settings.images, task, "amber").items():
        for query, known in of[name]:
            yield (str(query["id"]), name, query["query"] + suffix, (path,)), query["query"], known


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
