"""RePOPE: POPE's questions about COCO with labels that were checked again; stored POPE answers are scored anew.

Source: Neuhaus and Hein, "RePOPE: Impact of Annotation Errors on the POPE Benchmark", arXiv:2504.15707,
YanNeu/RePOPE at bcf22e5. Its repository states no licence: nothing of it is kept here, and its files are the user's or
are fetched (`lvlm_guard.evals.tasks.repope`). No question is asked again: 9.3 % of the labels yes and 1.7 % of the
labels no are turned over, others dropped as ambiguous, so that fewer than half of the labels are yes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import pope
from lvlm_guard.evals.metrics.metric import Array, Score, share
from lvlm_guard.evals.metrics.yes_no import WIDTH, YesNo

SPLITS = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class Asked:
    """A question of POPE as it was asked: its split ("random"), id in that split, picture's file name and text."""

    split: str
    question_id: int
    image: str
    text: str


@dataclass(frozen=True)
class Label:
    """What RePOPE says of one question."""

    image: str
    text: str
    label: pope.Answer


def labels(asked: Iterable[Asked], repope: Mapping[str, Mapping[int, Label]]) -> list[pope.Answer | None]:
    """Return RePOPE's label of each question, in their order; None where RePOPE dropped it as ambiguous.

    Args:
        asked: the questions whose answers are stored, of the splits in `repope`, each once.
        repope: split -> question id -> label.

    Raises:
        DataError: a picture or text is not the one that RePOPE labels ("imange" is "image"), a split is unknown, a
            question is there twice, or RePOPE labels a question that was not asked.
    """
    found: list[pope.Answer | None] = []
    left = {(split, number) for split, of_split in repope.items() for number in of_split}
    seen: set[tuple[str, int]] = set()
    for one in asked:
        if one.split not in repope:
            raise DataError(f"RePOPE has no split {one.split!r}: it labels COCO's {', '.join(repope)}.")
        key = (one.split, one.question_id)
        if key in seen:
            raise DataError(f"Question {one.question_id} of POPE {one.split} was asked twice: which answer counts?")
        seen.add(key)
        label = repope[one.split].get(one.question_id)
        if label is not None:
            # a stored prompt may go on after the question
            if one.image != label.image or _repaired(label.text) not in _repaired(one.text):
                raise DataError(
                    f"Question {one.question_id} of POPE {one.split} is {one.text!r} of {one.image} here, and "
                    f"{label.text!r} of {label.image} in RePOPE: these answers are to other questions than POPE's for "
                    "COCO, or the questions were numbered anew."
                )
            left.discard(key)
        found.append(None if label is None else label.label)
    if left:
        split, number = min(left)
        raise DataError(
            f"{len(left)} questions of RePOPE were not answered, the first of them {number} of {split}: its scores are "
            "of all pictures. Answer every question of POPE's three files for COCO (no --limit)."
        )
    return found


def _repaired(text: str) -> str:
    return text.replace("imange", "image").strip()


class RePope(YesNo):
    """POPE's answers under RePOPE's labels; "official" reads as RePOPE's script, which leaves unread answers out."""

    def scores(self) -> Mapping[str, Score]:
        """Return the scores of `YesNo`; of the scripts' readings RePOPE's alone."""
        ours = {name: score for name, score in super().scores().items() if not name.endswith(SCRIPTS)}
        tp, fp, tn, fn = ([column] for column in range(START, START + 4))
        official = {
            "accuracy": ratio_of(tp + tn, tp + fp + tn + fn),
            "precision": ratio_of(tp, tp + fp),
            "recall": ratio_of(tp, tp + fn),
            "f1": ratio_of(tp + tp, tp + tp + fp + fn),
            "yes_ratio": ratio_of(tp + fp, tp + fp + tn + fn),
        }
        return ours | {f"{name}_official": score for name, score in official.items()}

    def _read(self, text: str, yes: bool) -> list[int]:
        return [*super()._read(text, yes)[:START], *script_counts(text, yes), *[0] * (WIDTH - START - 4)]


START = 8
"""Column of `YesNo`'s counts where those of the scripts' readings begin."""
SCRIPTS = ("_official", "_agla", "_stock")


def script_counts(text: str, yes: bool) -> list[int]:
    """Return tp, fp, tn, fn as the scripts of RePOPE and DASH-B read an answer: none of them where they can't."""
    said = pope.read(text, "repope")
    return [said == "yes" and yes, said == "yes" and not yes, said == "no" and not yes, said == "no" and yes]


def ratio_of(top: Sequence[int], bottom: Sequence[int]) -> Score:
    """Return a score of a script: a ratio of sums of columns."""

    def of(c: Array) -> Array:
        return share(c[..., list(top)].sum(-1), c[..., list(bottom)].sum(-1))

    return Score(of, compared=False)
