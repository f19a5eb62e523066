"""POPE: yes/no questions about objects, five readings of the same answers.

Source: Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023,
arXiv:2305.10355. The readings imitate the scripts of RUCAIBox/POPE at 3df3ba1 ("official"),
Lackel/AGLA at efa1263 and, the same code, DAMO-NLP-SG/VCD at d6568ff ("agla"), lmms-eval 0.7
("stock"), and YanNeu/RePOPE at bcf22e5 and YanNeu/DASH-B at 1538d01 ("repope"). The default, "word", is
sound: nothing counts as yes that does not say so.

Differs from the scripts: a ratio 0/0 is 0.0 (theirs stop with an error), and labels are checked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from lvlm_guard.evals.errors import DataError

Reading = Literal["word", "official", "agla", "stock", "repope"]
Answer = Literal["yes", "no"]

_WORD = re.compile(r"[^\W\d_]+")
_SENTENCE_END = re.compile(r"(?<=\w)[.!?]")
_DECISIVE = re.compile(r"\b(yes|no|not)\b")
_READ: dict[str, Answer] = {"yes": "yes", "no": "no", "not": "no"}


def read(answer: str, reading: Reading = "word", label: Answer | None = None) -> Answer | None:
    """Read an answer.

    Args:
        answer: the model's words.
        reading: "word" (default): the first word, else the first whole word yes, no or not of the first
            sentence. "official": no if the first sentence holds a token No, not or no, otherwise yes, even
            for no answer at all. "agla": looks for the letters of the label. "stock": the whole answer
            must be the word. "repope": the letters yes anywhere, else the letters no, so that "eyes" is a yes and
            "unknown" a no.
        label: the right answer, which "agla" depends on.

    Returns:
        "yes", "no", or None where the answer can't be read. "agla" has no unreadable answers: what does
        not hold the letters of the label counts as the other word.

    Raises:
        DataError: the reading is unknown, or "agla" comes without a label.
    """
    if reading == "word":
        return _first_word(answer)
    if reading == "official":
        # NO, "No!", "no;", Not, isn't and the empty answer all read as yes, "Yes, there is no doubt" as no
        tokens = answer.split(".", 1)[0].replace(",", "").split(" ")
        return "no" if any(token in ("No", "not", "no") for token in tokens) else "yes"
    if reading == "agla":
        if label is None:
            raise DataError("The reading 'agla' depends on the right answer: give label='yes' or 'no'.")
        found = label in answer.lower().strip()
        return label if found else ("no" if label == "yes" else "yes")
    if reading == "stock":
        word = answer.lower().strip()
        return "yes" if word == "yes" else "no" if word == "no" else None
    if reading == "repope":
        return "yes" if "yes" in answer.lower() else "no" if "no" in answer.lower() else None
    raise _unknown(reading)


def _first_word(answer: str) -> Answer | None:
    text = answer.lower()
    first = _WORD.search(text)
    if first is None:
        return None
    if first.group() in _READ:
        return _READ[first.group()]
    found = _DECISIVE.search(_SENTENCE_END.split(text, maxsplit=1)[0])
    return _READ[found.group()] if found else None


def score(rows: Iterable[Mapping[str, Any]], reading: Reading = "word") -> dict[str, Any]:
    """Score answers against their labels.

    Args:
        rows: each with `question_id`, `label` ("yes" or "no") and `answer` (text; None counts as empty).
        reading: how an answer is read, see `read`. With "stock" the yes ratio is the share of yes among
            the *labels*, as lmms-eval has it; everywhere else it is that of the answers.

    Returns:
        "accuracy", "precision", "recall", "f1" (of yes), "yes_ratio" (shares in 0 to 1), and the counts "tp", "fp",
        "tn", "fn", "n" and "unreadable". An unreadable answer is wrong: under a label yes it is a miss (in fn; "stock"
        leaves it out), under a label no in none of the four. "repope" leaves it out of every count, n too.

    Raises:
        DataError: a field is missing, a label is neither yes nor no, or the reading is unknown.
    """
    if reading not in get_args(Reading):
        raise _unknown(reading)
    said: Counter[tuple[Answer, Answer | None]] = Counter()
    for number, row in enumerate(rows):
        label, answer = checked(row, number)
        said[label, read(answer, reading, label)] += 1
    tp, fp, tn, fn = (said[of] for of in (("yes", "yes"), ("no", "yes"), ("no", "no"), ("yes", "no")))
    unread_yes, unread_no = said["yes", None], said["no", None]
    fn += unread_yes if reading not in ("stock", "repope") else 0
    n = tp + fp + tn + fn + (0 if reading == "repope" else unread_no) + (unread_yes if reading == "stock" else 0)
    precision, recall = ratio(tp, tp + fp), ratio(tp, tp + fn)
    yes = tp + fn + unread_yes if reading == "stock" else tp + fp
    shares = {"accuracy": ratio(tp + tn, n), "precision": precision, "recall": recall}
    shares |= {"f1": ratio(2 * precision * recall, precision + recall), "yes_ratio": ratio(yes, n)}
    return shares | {"unreadable": unread_yes + unread_no, "tp": tp, "fp": fp, "tn": tn, "fn": fn, "n": n}


def _unknown(reading: str) -> DataError:
    return DataError(f"No reading is called {reading!r}. Known: {', '.join(get_args(Reading))}.")


def checked(row: Mapping[str, Any], number: int = 0) -> tuple[Answer, str]:
    """Return a row's label and answer; raises `DataError` where it has none that can be scored."""
    for field in ("question_id", "label", "answer"):
        if field not in row:
            raise DataError(
                f"Row {number} has no {field!r}; it has {', '.join(map(repr, row)) or 'nothing'}. POPE rows need "
                "question_id, label ('yes' or 'no') and answer."
            )
    label, answer = row["label"], row["answer"]
    if label not in ("yes", "no"):
        raise DataError(f"Question {row['question_id']!r} has the label {label!r}: POPE knows 'yes' and 'no' only.")
    if answer is not None and not isinstance(answer, str):
        raise DataError(f"Question {row['question_id']!r} has an answer that is no text: {answer!r}.")
    return label, answer or ""


def ratio(part: float, whole: float) -> float:
    """Return part / whole, and 0.0 for 0/0."""
    return part / whole if whole else 0.0
