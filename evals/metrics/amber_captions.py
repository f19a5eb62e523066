"""AMBER, captions: which nouns are in the picture (Cover), which are not (CHAIR, Hal), which are its traps (Cog).

Source: as `amber`. "AMBER (lexical)" is ours and the default: words are equal or not, no tagger, no vectors; it does
not compare with papers. "official" is the script's matching: nouns by NLTK, and words alike by vectors of spaCy's
en_core_web_lg or, the same, by a table of the pairs they hold alike (`tasks.amber`): both words come from 418.

Saying nothing has CHAIR, Hal and Cog 0: read Cover and length beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import lemmas, singular, tokens
from lvlm_guard.evals.metrics.metric import Array, Batch, Direction, Items, Metric, Score, each, share
from lvlm_guard.evals.spec import jsonl

Similar = Callable[[str, str], bool]

ALIKE = 0.8
"""Words are alike above this cosine of their vectors."""
MODEL = "en_core_web_lg"
OFFICIAL = 0.001
"""What the script's denominators start at."""
NO_NOUNS = frozenset({"can", "hot"})
"""Words of AMBER's vocabulary that captions mostly use otherwise; without a tagger they are not counted."""

COUNTS = ("hallucinated", "counted", "covered", "annotated", "cognitive", "distractors", "clean", "captions")


@dataclass(frozen=True)
class Words:
    """AMBER's words: which nouns are looked for, what else they are called, and which are never wrong."""

    associates: Mapping[str, Sequence[str]]
    safe: frozenset[str]

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        """All words that are looked for."""
        return frozenset(self.associates) | {word for words in self.associates.values() for word in words}

    @cached_property
    def lexical(self) -> frozenset[str]:
        """Words that lexical matching looks for, lower-cased."""
        return frozenset(word.lower() for word in self.vocabulary) - self.safe - NO_NOUNS


def match_official(
    nouns: Iterable[str], truth: Sequence[str], traps: Sequence[str], words: Words, similar: Similar
) -> list[int]:
    """Return the `COUNTS` of a caption as AMBER's script has them.

    Args:
        nouns: its nouns in their dictionary form, in order, repeats included, not lower-cased.
        truth, traps: what is annotated in the picture, and what a model may be tempted to name.
        words, similar: AMBER's words, and whether two are alike.
    """
    there, not_there = _places(truth, words), _places(traps, words)
    covered, trapped = set[int](), set[int]()
    hallucinated = counted = 0
    for noun in (noun for noun in nouns if noun in words.vocabulary):
        counted += 1
        if noun in words.safe:
            continue
        # associates stand first: a truth word that is also an associate of another credits that other one
        equal = next((at for word, at in there if word == noun), None)
        if equal is not None:
            covered.add(equal)
            continue
        trapped.update([at for word, at in not_there if word == noun][:1])
        trapped.update([at for word, at in not_there if similar(noun, word)][:1])
        alike = next((at for word, at in there if similar(noun, word)), None)
        if alike is None:
            hallucinated += 1
        else:
            covered.add(alike)
    return [hallucinated, counted, len(covered), len(truth), len(trapped), len(traps), hallucinated == 0, 1]


def _places(annotated: Sequence[str], words: Words) -> list[tuple[str, int]]:
    associates = [(word, at) for at, of in enumerate(annotated) for word in words.associates.get(of, ())]
    return [*associates, *((word, at) for at, word in enumerate(annotated))]


def match_lexical(caption: str, truth: Sequence[str], traps: Sequence[str], words: Words) -> list[int]:
    """Return the `COUNTS` of a caption by equal words, each credited to a word itself before its associates.

    Words of the vocabulary count whatever part of speech they are, but for `NO_NOUNS` and AMBER's safe words; those are
    left out of what is annotated too. Annotated words count once each.
    """
    named = [word if word in words.lexical else singular.repaired(word) for word in tokens.words(caption)]
    there, not_there = (_credits(annotated, words) for annotated in (truth, traps))
    covered, trapped = set[str](), set[str]()
    counted = hallucinated = 0
    for noun in (noun for noun in named if noun in words.lexical):
        counted += 1
        if noun in there:
            covered.add(there[noun])
        else:
            hallucinated += 1
            if noun in not_there:
                trapped.add(not_there[noun])
    sizes = len(covered), len(set(there.values())), len(trapped), len(set(not_there.values()))
    return [hallucinated, counted, *sizes, hallucinated == 0, 1]


def _credits(annotated: Sequence[str], words: Words) -> dict[str, str]:
    """Return word -> the annotated word that it credits."""
    kept = [word for word in annotated if word not in words.safe]
    found = {word.lower(): word.lower() for word in kept}
    for word in kept:
        for other in words.associates.get(word, ()):
            found.setdefault(other.lower(), word.lower())
    return found


def nouns(caption: str) -> list[str]:
    """Return a caption's nouns as AMBER's script takes them; raises ImportError or LookupError, see `lemmas.check`."""
    return [lemmas.lemma(word, "N") for word, tag in lemmas.tagged(caption) if tag.startswith("NN")]


def printed(sums: Sequence[float]) -> dict[str, float]:
    """Return CHAIR, Cover, Hal and Cog as AMBER's script prints them, percent, of summed `COUNTS`."""
    values = 100 * _shares(np.asarray(sums, float), OFFICIAL)
    return dict(zip(("CHAIR", "Cover", "Hal", "Cog"), (round(float(value), 1) for value in values), strict=True))


SCORES: dict[str, Direction] = {"chair": "lower", "cover": "higher", "hal": "lower", "cog": "lower"}
"""The four scores without what they begin with, "amber_", and which way is better."""


def _shares(c: Array, small: float = 0.0) -> Array:
    """Return the four shares of summed `COUNTS`, [..., 4]; the script's denominators start at a thousandth."""
    chair, cover, cog, clean = (share(c[..., at], c[..., at + 1] + small) for at in (0, 2, 4, 6))
    return np.stack([chair, cover, 1 - clean, cog], axis=-1)


class AmberCaptions(Metric):
    """Captions of AMBER's pictures; truths are {"truth": [...], "hallu": [...]}.

    The task's "about" has "association" and "safe_words"; with "similarity" (`MODEL`, or the path of a table) the
    published scores stand beside ours.
    """

    def __init__(self, task: Mapping[str, Any], items: Items) -> None:
        super().__init__(task, items)
        about = task.get("about") or {}
        for key, truth in zip(items.keys, items.truths, strict=True):
            jsonl.check_fields(truth, ("truth", "hallu"), f"Item {key!r} of {task['name']}", "truth of a caption")
        jsonl.check_fields(
            about, ("association", "safe_words"), f"{task['name']}'s 'about'", "task of AMBER's captions"
        )
        self.words = Words(about["association"], frozenset(about["safe_words"]))
        self.similar = similar_of(about["similarity"]) if about.get("similarity") else None

    def count(self, batch: Batch) -> Array:
        """Return of each caption its words, the lexical `COUNTS`, and the script's (0 where they are not had)."""
        return each(batch.texts, batch.places, self._read, 1 + 2 * len(COUNTS))

    def scores(self) -> Mapping[str, Score]:
        """Return the four scores, lexical and, where asked for, official, and the length of captions."""
        found = {"length": Score(lambda c: share(c[..., 0], c[..., 8]), "")}
        for at, (metric, direction) in enumerate(SCORES.items()):
            found[f"amber_{metric}"] = Score(_column(1, at), direction, dialect="lexical")
            if self.similar is not None:
                found[f"amber_{metric}_official"] = Score(_column(9, at, OFFICIAL), direction, dialect="official")
        return found

    def _read(self, caption: str, place: int) -> list[float]:
        truth = self.items.truths[place]
        found: list[float] = [len(caption.split()), *match_lexical(caption, truth["truth"], truth["hallu"], self.words)]
        if self.similar is None:
            return found + [0.0] * len(COUNTS)
        return found + match_official(nouns(caption), truth["truth"], truth["hallu"], self.words, self.similar)


def _column(start: int, at: int, small: float = 0.0) -> Callable[[Array], Array]:
    return lambda c: _shares(c[..., start : start + len(COUNTS)], small)[..., at]


def similar_of(source: str | Path) -> Similar:
    """Return how words are compared: by spaCy's vectors (`MODEL`), or a table of pairs; `DataError` if they lack."""
    lemmas.check("AMBER's published score of captions")
    if str(source) == MODEL:
        return cache(lambda a, b: bool(vectors()(a).similarity(vectors()(b)) > ALIKE))
    return read_table(source)


def read_table(path: str | Path) -> Similar:
    """Return how words are compared by a table: JSON list of [word, word, cosine], one for each pair above `ALIKE`.

    A word is alike to itself; pairs hold both ways. Raises `DataError`.
    """
    table = jsonl.document(path)
    try:
        pairs = {frozenset((str(a), str(b))) for a, b, cosine in table if float(cosine) > ALIKE}
    except (TypeError, ValueError):
        raise DataError(f"{path} is no table of words alike: it must be a JSON list of [word, word, cosine].") from None
    return lambda a, b: a == b or frozenset((a, b)) in pairs


@cache
def vectors() -> Any:
    """Return spaCy's `MODEL`; raises `DataError` where it is not installed."""
    try:
        import spacy

        return spacy.load(MODEL)
    except (ImportError, OSError) as error:
        raise DataError(
            f"AMBER's published score of captions compares words by spaCy's {MODEL} ({error}): pip install "
            f"'lvlm-guard[amber]', then python -m spacy download {MODEL}; or give a table of words alike that was "
            "written where it is installed. Smaller models give other numbers."
        ) from None
