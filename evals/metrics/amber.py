"""AMBER: yes/no questions whose positive class is no, and captions held against what is annotated in the picture.

Source: Wang et al., "AMBER: An LLM-free Multi-dimensional Benchmark for MLLMs Hallucination Evaluation",
arXiv:2311.07397, junyangwang0410/AMBER at 534babf (Apache-2.0).

"No" to every question has accuracy 66.3 and F1 79.7, so read balanced accuracy and yes ratio beside them. No words
have CHAIR, Hal and Cog 0: read Cover and length. "AMBER (lexical)" is ours: words are equal or not; it doesn't compare
with papers. "official" is the script's: nouns by NLTK, alike by spaCy's vectors or a table of theirs (`tasks.amber`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import tokens, yes_no
from lvlm_guard.evals.metrics.metric import Array, Direction, Items, Score, TextMetric, share
from lvlm_guard.evals.spec import jsonl

BLOCKS = {
    "discriminative-hallucination": ("existence",),
    "discriminative-attribute-state": ("attribute", "state"),
    "discriminative-attribute-number": ("attribute", "number"),
    "discriminative-attribute-action": ("attribute", "action"),
    "discriminative-relation": ("relation",),
    "relation": ("relation",),
}
"""Type of question -> the blocks that it counts in, beside all."""

SMALL = 0.001  # what every denominator of the script starts at
SCRIPT = ("accuracy", "precision", "recall", "f1")


def official(counts: Array, small: float = SMALL) -> Array:
    """Return the `SCRIPT`'s scores as it prints them, percent, [..., 4], of sums of `yes_no.COLUMNS`, as it reads.
    Denominators start at `small`, which is three times `SMALL` for attributes: these are summed of three types."""
    tp, _, tn, fn, n, _, _, no = np.moveaxis(np.asarray(counts, float), -1, 0)
    pairs = ((tp + tn, n), (tn, tn + fn), (tn, no))
    accuracy, precision, recall = (np.round(100 * part / (whole + small), 1) for part, whole in pairs)
    # existence has no question that should be answered yes, and another constant
    slack = np.where((no == n) & (n > 0), 0.001, 0.0001)
    f1 = np.round(100 * (2 * (precision / 100) * (recall / 100) / (precision / 100 + recall / 100 + slack)), 1)
    return np.stack([accuracy, precision, recall, f1], axis=-1)


def _column(of: Callable[[Array], Array], at: int) -> Callable[[Array], Array]:
    return lambda counts: of(counts)[..., at]


class Amber(yes_no.YesNo):
    """AMBER's questions; "official" scores are the script's, which rounds to a tenth of a percent."""

    joined = False  # a question of state counts among attributes too, and in "amber" all together
    positive = "no"
    printed: ClassVar = {name: Score(_column(lambda c: official(c) / 100, at)) for at, name in enumerate(SCRIPT)}
    scripts: ClassVar = {"official": ("amber", printed)}
    more: ClassVar = {"no_ratio": Score(lambda c: 1 - share(c[..., [0, 1, 5]].sum(-1), c[..., 4]), "")}


COUNTS = ("hallucinated", "counted", "covered", "annotated", "cognitive", "distractors", "clean", "captions")
ALIKE = 0.8  # words are alike above this cosine of their vectors
MODEL = "en_core_web_lg"
NO_NOUNS = {"can", "hot"}  # captions mostly use them otherwise; without a tagger they are not counted
Similar = Callable[[str, str], bool]
Texts = Sequence[str]


class Words:
    """AMBER's words: what else each noun is called, and which are never wrong."""

    def __init__(self, associates: Mapping[str, Texts], safe: Iterable[str]) -> None:
        self.associates, self.safe = associates, frozenset(safe)
        self.vocabulary = frozenset(associates) | {word for words in associates.values() for word in words}
        self.lowered = {word.lower(): [other.lower() for other in others] for word, others in associates.items()}
        self.lexical = {word.lower() for word in self.vocabulary} - self.safe - NO_NOUNS


def match_official(nouns: Texts, truth: Texts, traps: Texts, words: Words, similar: Similar) -> list[int]:
    """Return the `COUNTS` of a caption as AMBER's script has them, `similar` telling whether two words are alike.
    `nouns` are in their dictionary form, in order, repeats included, not lower-cased; `truth` and `traps` what is
    annotated in the picture, and what a model may be tempted to name."""
    named = [noun for noun in nouns if noun in words.vocabulary]
    # associates stand first: a truth word that is also an associate of another credits that other one
    return _match(named, (truth, traps), words.associates, similar, words.safe)


def match_lexical(caption: str, truth: Texts, traps: Texts, words: Words) -> list[int]:
    """Return the `COUNTS` of a caption by equal words, each credited to a word itself before its associates. Words of
    the vocabulary count whatever part of speech they are, but for `NO_NOUNS` and AMBER's safe words; those are left out
    of what is annotated too. Annotated words count once each."""
    singular = (word if word in words.lexical else tokens.repaired(word) for word in tokens.words(caption))
    named = [word for word in singular if word in words.lexical]
    kept = [list(dict.fromkeys(word.lower() for word in of if word not in words.safe)) for of in (truth, traps)]
    return _match(named, kept, words.lowered, operator.eq, own_first=True)


def _match(
    nouns: Texts,
    annotated: Sequence[Texts],
    associates: Mapping[str, Texts],
    similar: Similar,
    safe: Container[str] = (),
    own_first: bool = False,
) -> list[int]:
    there, not_there = (_credits(of, associates, own_first) for of in annotated)
    covered, trapped = set[int](), set[int]()
    hallucinated = 0
    for noun in (noun for noun in nouns if noun not in safe):
        if noun in there:
            covered.add(there[noun])
            continue
        trapped.update([not_there[noun]] if noun in not_there else [])
        trapped.update([at for word, at in not_there.items() if similar(noun, word)][:1])
        alike = next((at for word, at in there.items() if similar(noun, word)), None)
        covered.update([] if alike is None else [alike])
        hallucinated += alike is None
    truth, traps = map(len, annotated)
    return [hallucinated, len(nouns), len(covered), truth, len(trapped), traps, hallucinated == 0, 1]


def _credits(annotated: Texts, associates: Mapping[str, Texts], own_first: bool) -> dict[str, int]:
    """Return word -> the place of the annotated word that it credits, the first of them."""
    own = [(word, at) for at, word in enumerate(annotated)]
    others = [(other, at) for at, word in enumerate(annotated) for other in associates.get(word, ())]
    found: dict[str, int] = {}
    for word, at in [*own, *others] if own_first else [*others, *own]:
        found.setdefault(word, at)
    return found


def nouns(caption: str) -> list[str]:
    """Return a caption's nouns as AMBER's script takes them; raises ImportError or LookupError, see `tokens.check`."""
    return [tokens.lemma(word, "N") for word, tag in tokens.tagged(caption) if tag.startswith("NN")]


def shares(c: Array, small: float = 0.0) -> Array:
    """Return the four shares of summed `COUNTS`, [..., 4]; the script's denominators start at `SMALL`."""
    chair, cover, cog, clean = (share(c[..., at], c[..., at + 1] + small) for at in (0, 2, 4, 6))
    return np.stack([chair, cover, 1 - clean, cog], axis=-1)


class AmberCaptions(TextMetric):
    """Captions of AMBER's pictures; truths are {"truth": [...], "hallu": [...]}. The task's "about" has "association"
    and "safe_words"; with "similarity" (`MODEL`, or the path of a table) the published scores stand beside ours."""

    def __init__(self, task: Mapping[str, Any], items: Items) -> None:
        super().__init__(task, items)
        about = task.get("about") or {}
        for key, truth in zip(items.keys, items.truths, strict=True):
            jsonl.check_fields(truth, ("truth", "hallu"), f"Item {key!r} of {self.name}", "truth of a caption")
        jsonl.check_fields(about, ("association", "safe_words"), f"{self.name}'s 'about'", "task of AMBER's captions")
        self.words = Words(about["association"], frozenset(about["safe_words"]))
        self.similar = similar_of(about["similarity"]) if about.get("similarity") else None

    def read(self, text: str, case: int) -> Sequence[float]:
        """Return of a caption its words, the lexical `COUNTS`, and, where asked for, the script's."""
        truth, traps = (self.items.truths[case][name] for name in ("truth", "hallu"))
        found = [len(text.split()), *match_lexical(text, truth, traps, self.words)]
        return found + (match_official(nouns(text), truth, traps, self.words, self.similar) if self.similar else [])

    def scores(self) -> Mapping[str, Score]:
        found = {"length": Score(lambda c: share(c[..., 0], c[..., 8]), "")}
        for at, metric in enumerate(("amber_chair", "amber_cover", "amber_hal", "amber_cog")):
            direction: Direction = "higher" if metric == "amber_cover" else "lower"
            found[metric] = Score(_column(shares, at), direction, dialect="lexical").at(slice(1, 9))
            if self.similar is not None:
                script = _column(partial(shares, small=SMALL), at)
                found[f"{metric}_official"] = Score(script, direction, dialect="official").at(slice(9, 17))
        return found


def similar_of(source: str | Path) -> Similar:
    """Return how words are compared: by spaCy's vectors (`MODEL`), or a table; raises `DataError` where they lack. A
    table is a JSON list of [word, word, cosine], one for each pair above `ALIKE`. A word is alike to itself; pairs hold
    both ways."""
    tokens.check("AMBER's published score of captions")
    if str(source) == MODEL:
        return cache(lambda a, b: bool(vectors()(a).similarity(vectors()(b)) > ALIKE))
    table = jsonl.document(source)
    try:
        pairs = {frozenset((str(a), str(b))) for a, b, cosine in table if float(cosine) > ALIKE}
    except (TypeError, ValueError):
        raise DataError(f"{source} is no table of words alike, a JSON list of [word, word, cosine].") from None
    return lambda a, b: a == b or frozenset((a, b)) in pairs


@cache
def vectors() -> Any:
    """Return spaCy's `MODEL`; raises `DataError` where it is not installed."""
    try:
        import spacy

        return spacy.load(MODEL)
    except (ImportError, OSError) as error:
        how = f"pip install 'lvlm-guard[amber]' && python -m spacy download {MODEL}, or give a table of words alike"
        raise DataError(f"AMBER's published score of captions needs spaCy's {MODEL} ({error}): {how}.") from None
