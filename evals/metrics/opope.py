"""OPOPE: POPE's questions asked of a caption, so that no answer is a mere yes or no.

Source: Chen et al., "HALC", ICML 2024, arXiv:2403.00425, BillChan226/HALC at 12ea8b5. There a caption says yes to an
object if any part of its name between blanks stands anywhere in the raw text: "cup" in "cupcake", "stop sign" by
"stop", but no person by "man". Ours says yes if the caption names the object as CHAIR reads captions.

A caption that does not mention an object does not deny it: recall is coverage, precision the figure of merit (F of
beta 0.2 leans to it), and length stands beside them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.metric import Array, Batch, Columns, Direction, Items, Metric, Score, each, share
from lvlm_guard.evals.metrics.objects import coco_words

BETA = 0.2
_OBJECT = re.compile(r"Is there an? (.+) in the im(?:an|a)ge\?")


def asked_object(text: str) -> str:
    """Return the object that a question of POPE asks about; raises `DataError` of none, or none of CHAIR's 80."""
    found = _OBJECT.fullmatch(text.strip())
    if found is None:
        raise DataError(
            f"{text!r} is no question of POPE ('Is there a dog in the image?'): OPOPE can't ask a caption it."
        )
    if found.group(1) not in coco_words().nodes:
        raise DataError(f"{text!r} asks about an object that captions are not searched for: OPOPE is over COCO's 80.")
    return found.group(1)


def says_official(caption: str, name: str) -> bool:
    """Return whether a caption says yes to an object as HALC's script reads it."""
    return any(part in caption for part in name.split(" "))


class Opope(Metric):
    """Captions asked POPE's questions: truths are kind of questions -> [object, "yes" or "no"] pairs."""

    def __init__(self, task: Mapping[str, Any], items: Items) -> None:
        super().__init__(task, items)
        nodes, yes = coco_words().nodes, {"yes": True, "no": False}
        self.asked: list[dict[str, list[tuple[str, str, bool]]]] = []
        for key, truth in zip(items.keys, items.truths, strict=True):
            try:
                self.asked.append({k: [(o, nodes[o], yes[label]) for o, label in of] for k, of in truth.items()})
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"Item {key!r} of {task['name']} has no questions that a caption can be asked ({error}): its truth "
                    "must be kind -> [object, 'yes' or 'no'] pairs."
                ) from None
        self.kinds = list(dict.fromkeys(kind for of in self.asked for kind in of))

    def count(self, batch: Batch) -> Array:
        """Return of each caption 1, its words, and by kind tp, fp, tn, fn as we read it, and as HALC's script does."""
        return each(batch.texts, batch.places, self._read, 2 + 8 * len(self.kinds))

    def scores(self) -> Mapping[str, Score]:
        """Return precision, recall, F1 and F0.2 of each kind of questions, and the length of captions."""
        found: dict[str, Score] = {}
        for n, kind in enumerate(self.kinds):
            for start, suffix in ((2 + 8 * n, ""), (6 + 8 * n, "_official")):
                for metric, of in _scores(start).items():
                    direction: Direction = "" if metric == "yes_ratio" else "higher"
                    found[f"{metric}_{kind}{suffix}"] = Score(of, direction, compared=not suffix)
        return found | {"length": Score(lambda c: share(c[..., 1], c[..., 0]), "")}

    def _read(self, caption: str, place: int) -> list[float]:
        named = set(coco_words().find(caption).nodes)
        counts: list[float] = [1, len(caption.split())]
        for kind in self.kinds:
            asked = self.asked[place].get(kind, [])
            counts += outcomes((node in named, yes) for _, node, yes in asked)
            counts += outcomes((says_official(caption, name), yes) for name, _, yes in asked)
        return counts


def outcomes(answers: Iterable[tuple[bool, bool]]) -> list[int]:
    """Return tp, fp, tn, fn of (said yes, is yes) pairs."""
    pairs = list(answers)
    return [pairs.count(pair) for pair in ((True, True), (True, False), (False, False), (False, True))]


def _scores(start: int) -> dict[str, Callable[[Array], Array]]:
    """Return the scores of the tp, fp, tn, fn that begin at a column."""
    of, b = Columns(("tp", "fp", "tn", "fn"), start), BETA * BETA

    def f_beta(c: Array) -> Array:
        hit = (1 + b) * of.sum(c, "tp")
        return share(hit, hit + b * of.sum(c, "fn") + of.sum(c, "fp"))

    return {
        "accuracy": of.ratio("tp tn", "tp fp tn fn"),
        "precision": of.ratio("tp", "tp fp"),
        "recall": of.ratio("tp", "tp fn"),
        "f1": of.ratio("tp tp", "tp tp fn fp"),
        "f0.2": f_beta,
        "yes_ratio": of.ratio("tp fp", "tp fp tn fn"),
    }
