"""Answers to yes/no questions, as POPE and the benchmarks after it read them: one sound reading, and those of scripts.

Source: Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023, arXiv:2305.10355.
Differs from the scripts: a ratio 0/0 is 0.0 (theirs stop with an error), and labels are checked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.spec import jsonl

Reading = Literal["word", "official", "agla", "stock", "repope", "mme", "amber"]
Answer = Literal["yes", "no"]

_WORD = re.compile(r"[^\W\d_]+")
_SENTENCE_END = re.compile(r"(?<=\w)[.!?]")
_DECISIVE = re.compile(r"\b(yes|no|not)\b")
_READ: dict[str, Answer] = {"yes": "yes", "no": "no", "not": "no"}


def read(answer: str, reading: Reading = "word", label: Answer | None = None) -> Answer | None:
    """Return what an answer says, None where that can't be read; raises `DataError` of an unknown reading.

    - "word", sound: the first word, else the first whole word yes, no or not of the first sentence;
    - "official", RUCAIBox/POPE at 3df3ba1: no if the first sentence holds a token No, not or no, else yes, even for "";
    - "agla", Lackel/AGLA at efa1263 and DAMO-NLP-SG/VCD at d6568ff: by the letters of the right answer, the `label`
      (`DataError` without); an answer without them says the other word;
    - "stock", lmms-eval 0.7: the whole answer must be the word;
    - "repope", YanNeu/RePOPE at bcf22e5, DASH-B at 1538d01: the letters yes anywhere ("eyes"), else no ("unknown");
    - "mme": the same of the first four characters, so that two leading blanks hide a yes;
    - "amber", junyangwang0410/AMBER at 534babf: just Yes or No.
    """
    text = answer.lower()
    match reading:
        case "word":
            return _first_word(text)
        case "official":
            # NO, "No!", "no;", Not, isn't and the empty answer all read as yes, "Yes, there is no doubt" as no
            tokens = answer.split(".", 1)[0].replace(",", "").split(" ")
            return "no" if {"No", "not", "no"}.intersection(tokens) else "yes"
        case "agla":
            if label is None:
                raise DataError("The reading 'agla' depends on the right answer: give label='yes' or 'no'.")
            return label if label in text else "no" if label == "yes" else "yes"
        case "stock" | "amber":
            word = text.strip() if reading == "stock" or answer in ("Yes", "No") else ""
            return "yes" if word == "yes" else "no" if word == "no" else None
        case "repope" | "mme":
            searched = text[:4] if reading == "mme" else text
            return "yes" if "yes" in searched else "no" if "no" in searched else None
    raise DataError(f"No reading is called {reading!r}. Known: {', '.join(get_args(Reading))}.")


def _first_word(text: str) -> Answer | None:
    first = _WORD.search(text)
    if first is None or first.group() in _READ:
        return _READ[first.group()] if first else None
    found = _DECISIVE.search(_SENTENCE_END.split(text, maxsplit=1)[0])
    return _READ[found.group()] if found else None


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
