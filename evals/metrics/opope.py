"""OPOPE: POPE's questions asked of a caption, so that no answer is a mere yes or no.

Source: Chen et al., "HALC", ICML 2024, arXiv:2403.00425, BillChan226/HALC at 12ea8b5. There a caption says yes to an
object if any part of its name between blanks stands anywhere in the raw text, ours if CHAIR reads it there. A caption
that does not mention an object does not deny it: recall is coverage, precision the figure of merit (F of beta 0.2 leans
to it), and length stands beside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.metric import Array, Columns, Items, Score, TextMetric, share
from lvlm_guard.evals.metrics.objects import coco_words
from lvlm_guard.evals.metrics.yes_no import COLUMNS, OF_READ

BETA = 0.2


def _f_beta(c: Array) -> Array:
    hit = (1 + BETA * BETA) * COLUMNS.sum(c, "tp")
    return share(hit, hit + BETA * BETA * COLUMNS.sum(c, "fn") + COLUMNS.sum(c, "fp"))


SCORES = {name: OF_READ[name] for name in ("accuracy", "precision", "recall", "f1")}
SCORES |= {"f0.2": Score(_f_beta), "yes_ratio": OF_READ["yes_ratio"]}


def asked_object(text: str) -> str:
    """Return the object that a question of POPE asks about; raises `DataError` of none, or none of CHAIR's 80."""
    found = re.fullmatch(r"Is there an? (.+) in the im(?:an|a)ge\?", text.strip())
    if found is None:
        raise DataError(f"{text!r} is no question of POPE ('Is there a dog in the image?'): a caption can't be asked.")
    if found.group(1) not in coco_words().nodes:
        raise DataError(f"{text!r} asks about an object that captions are not searched for: OPOPE is over COCO's 80.")
    return found.group(1)


def says_official(caption: str, name: str) -> bool:
    """Return whether a caption says yes to an object as HALC's script reads it."""
    return any(part in caption for part in name.split(" "))


def outcomes(answers: Iterable[tuple[bool, bool]]) -> list[int]:
    """Return tp, fp, tn, fn of (said yes, is yes) pairs."""
    pairs = list(answers)
    return [pairs.count(pair) for pair in ((True, True), (True, False), (False, False), (False, True))]


class Opope(TextMetric):
    """Captions asked POPE's questions: truths are kind of questions -> [object, "yes" or "no"] pairs."""

    def __init__(self, task: Mapping[str, Any], items: Items) -> None:
        super().__init__(task, items)
        nodes, yes = coco_words().nodes, {"yes": True, "no": False}
        self.asked: list[dict[str, list[tuple[str, str, bool]]]] = []
        for key, truth in zip(items.keys, items.truths, strict=True):
            try:
                self.asked.append({k: [(o, nodes[o], yes[label]) for o, label in of] for k, of in truth.items()})
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                told = f"has a truth that is no kind -> [object, 'yes' or 'no'] pairs ({error})"
                raise DataError(f"Item {key!r} of {self.name} {told}: a caption can't be asked.") from None
        self.kinds = list(dict.fromkeys(kind for of in self.asked for kind in of))

    def read(self, text: str, case: int) -> Sequence[float]:
        """Return of a caption 1, its words, and by kind tp, fp, tn, fn as we read it, and as HALC's script does."""
        named = set(coco_words().find(text).nodes)
        counts = [1, len(text.split())]
        for kind in self.kinds:
            asked = self.asked[case].get(kind, [])
            counts += outcomes((node in named, yes) for _, node, yes in asked)
            counts += outcomes((says_official(text, name), yes) for name, _, yes in asked)
        return counts

    def scores(self) -> Mapping[str, Score]:
        blocks = ((kind, suffix) for kind in self.kinds for suffix in ("", "_official"))
        return {
            f"{metric}_{kind}{suffix}": score.at(slice(start, start + 4), compared=not suffix)
            for start, (kind, suffix) in zip(range(2, 2 + 8 * len(self.kinds), 4), blocks, strict=True)
            for metric, score in SCORES.items()
        } | {"length": Columns("captions words").ratio("words / captions", "")}
