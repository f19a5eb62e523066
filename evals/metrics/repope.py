"""RePOPE and DASH-B, whose scripts read answers alike.

RePOPE is POPE's questions about COCO with labels that were checked again; stored POPE answers are scored anew.

Source: Neuhaus and Hein, "RePOPE: Impact of Annotation Errors on the POPE Benchmark", arXiv:2504.15707,
YanNeu/RePOPE at bcf22e5. Its repository states no licence: nothing of it is kept here, and its files are the user's or
are fetched (`lvlm_guard.evals.tasks.repope`). No question is asked again: 9.3 % of the labels yes and 1.7 % of the
labels no are turned over, others dropped as ambiguous, so that fewer than half of the labels are yes.

DASH-B asks whether one can see a thing, of pictures that were found because they make models see what is not there.
Source: Augustin et al., "DASH", arXiv:2503.23573, YanNeu/DASH-B at 1538d01 (no licence: nothing is kept here). Its
script prints accuracy, TPR, TNR and the harmonic mean of these two; there an answer that can't be read is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import pope
from lvlm_guard.evals.metrics.metric import Array, Columns, Score, share
from lvlm_guard.evals.metrics.yes_no import COLUMNS, OURS, YesNo, outcome

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

    `asked` are the questions whose answers are stored, of the splits in `repope` (split -> question id -> label).

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


COUNTS = Columns([*COLUMNS.names[:OURS], "script_tp", "script_fp", "script_tn", "script_fn"])


class RePope(YesNo):
    """POPE's answers under RePOPE's labels; its script leaves unread answers out."""

    def read_scripts(self, text: str, yes: bool) -> list[int]:
        """Return the outcome as both scripts read; an answer that they can't read is none of the four."""
        said = pope.read(text, "repope")
        return [*outcome(said, yes)] if said else [0] * 4

    def script_scores(self) -> Mapping[str, Callable[[Array], Array]]:
        """Return the script's scores."""
        ratio, read = COUNTS.ratio, "script_tp script_fp script_tn script_fn"
        return {
            "accuracy_official": ratio("script_tp script_tn", read),
            "precision_official": ratio("script_tp", "script_tp script_fp"),
            "recall_official": ratio("script_tp", "script_tp script_fn"),
            "f1_official": ratio("script_tp script_tp", "script_tp script_tp script_fp script_fn"),
            "yes_ratio_official": ratio("script_tp script_fp", read),
        }


class DashB(RePope):
    """Yes/no questions with TNR, TPR (which is `recall`) and their harmonic mean, by both readings."""

    def scores(self) -> Mapping[str, Score]:
        """Return the scores of `YesNo` and DASH-B's."""
        return {**super().scores(), "tnr": Score(COUNTS.ratio("tn", "label_no")), "harmonic_mean": Score(_harmonic())}

    def script_scores(self) -> Mapping[str, Callable[[Array], Array]]:
        """Return the script's scores."""
        return {
            "accuracy_official": COUNTS.ratio("script_tp script_tn", "n"),
            "tpr_official": COUNTS.ratio("script_tp", "label_yes"),
            "tnr_official": COUNTS.ratio("script_tn", "label_no"),
            "harmonic_mean_official": _harmonic("script_"),
        }


def _harmonic(reading: str = "") -> Callable[[Array], Array]:
    """Return the harmonic mean of TPR and TNR."""

    def of(c: Array) -> Array:
        tpr, tnr = COUNTS.ratio(f"{reading}tp", "label_yes")(c), COUNTS.ratio(f"{reading}tn", "label_no")(c)
        return share(2 * tpr * tnr, tpr + tnr)

    return of
