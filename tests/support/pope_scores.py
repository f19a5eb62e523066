"""POPE's scores counted plainly, beside the package's own counts: what the published scripts' figures are held against.

Differs from the scripts: a ratio 0/0 is 0.0 (theirs stop with an error), and labels are checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics.pope import Answer, Reading, read
from lvlm_guard.evals.spec import jsonl


def score(rows: Iterable[Mapping[str, Any]], reading: Reading = "word") -> dict[str, Any]:
    """Score answers against their labels; raises `DataError` as `checked` and `read` do.

    Args:
        rows: each with `question_id`, `label` ("yes" or "no") and `answer` (text; None counts as empty).
        reading: see `read`. With "stock" the yes ratio is that of the *labels*, as lmms-eval has it.

    Returns:
        "accuracy", "precision", "recall", "f1" (of yes), "yes_ratio" (shares in 0 to 1), and the counts "tp", "fp",
        "tn", "fn", "n" and "unreadable". An unreadable answer is wrong: under a label yes it is a miss (in fn; "stock"
        leaves it out), under a label no in none of the four. "repope" leaves it out of every count, n too.
    """
    said: Counter[tuple[Answer, Answer | None]] = Counter()
    read("", reading, "yes")  # an unknown reading is refused even without rows
    for number, row in enumerate(rows):
        label, answer = checked(row, number)
        said[label, read(answer, reading, label)] += 1
    tp, fp, tn, fn = (said[of] for of in (("yes", "yes"), ("no", "yes"), ("no", "no"), ("yes", "no")))
    missed, unreadable = said["yes", None], said["yes", None] + said["no", None]
    yes = tp + fn + missed if reading == "stock" else tp + fp
    n = said.total() - (unreadable if reading == "repope" else 0)
    fn += 0 if reading in ("stock", "repope") else missed
    precision, recall = ratio(tp, tp + fp), ratio(tp, tp + fn)
    shares = {"accuracy": ratio(tp + tn, n), "precision": precision, "recall": recall}
    shares |= {"f1": ratio(2 * precision * recall, precision + recall), "yes_ratio": ratio(yes, n)}
    return shares | {"unreadable": unreadable, "tp": tp, "fp": fp, "tn": tn, "fn": fn, "n": n}


def checked(row: Mapping[str, Any], number: int = 0) -> tuple[Answer, str]:
    """Return a row's label and answer; raises `DataError` where it has none that can be scored."""
    jsonl.check_fields(row, ("question_id", "label", "answer"), f"Row {number}", "row of POPE")
    label, answer = row["label"], row["answer"]
    if label not in ("yes", "no"):
        raise DataError(f"Question {row['question_id']!r} has the label {label!r}: POPE knows 'yes' and 'no' only.")
    if answer is not None and not isinstance(answer, str):
        raise DataError(f"Question {row['question_id']!r} has an answer that is no text: {answer!r}.")
    return label, answer or ""


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
